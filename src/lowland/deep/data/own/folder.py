"""A folder of images, with a directory for each class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowland.deep.data.own.examples import part_called
from lowland.deep.data.own.pictures import SUFFIXES, Picture
from lowland.errors import InputError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ClassFolders:
    """The images of a part.

    Attributes:
        root: The folder whose directories are the classes.
        files: All images, class after class.
        classes: The name of each one's class.
        left: Files that are no images.
    """

    root: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    left: tuple[Path, ...]

    def pictures(self) -> list[Picture]:
        """The images with their names."""
        return [(str(path.relative_to(self.root)), path) for path in self.files]

    def hash(self) -> str:
        """Of the names and the bytes of all images."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()


def parts_of_folder(folder: Path) -> dict[str, ClassFolders]:
    """The parts of an image folder: below ``train``, ``val`` and ``test``, or all of it as ``train``.

    Raises:
        InputError: If it is none, or a part has another class than the training images.
    """
    levels = {part_called(d.name): d for d in _directories(folder)}
    if levels and None not in levels and "train" not in levels:
        raise InputError(f"{folder} must hold train beside {', '.join(d.name for d in levels.values())}.")
    if "train" not in levels or (None in levels and not any(_directories(levels["train"]))):
        return {"train": _classes_in(folder)}
    others = [d.name for d in _directories(folder) if part_called(d.name) is None]
    if others:
        raise InputError(
            f"{folder} must have train, val and test beside one another, or classes, got {others[0]} too."
        )
    names = [part_called(d.name) for d in _directories(folder)]
    if len(set(names)) < len(names):
        raise InputError(
            f"{folder} must have each part once, got {', '.join(d.name for d in _directories(folder))}."
        )
    parts = {part: _classes_in(directory) for part, directory in levels.items() if part is not None}
    known = set(parts["train"].classes)
    for part in parts.values():
        unknown = sorted(set(part.classes) - known)
        if unknown:
            raise InputError(
                f"{part.root} must have the classes of {parts['train'].root}, {', '.join(sorted(known))}, "
                f"got {unknown[0]} too."
            )
    return {part: parts[part] for part in ("train", "validation", "test") if part in parts}


def _classes_in(root: Path) -> ClassFolders:
    directories = _directories(root)
    if not directories:
        loose = sum(path.suffix.lower() in SUFFIXES for path in _files(root))
        got = f"{loose} images beside one another" if loose else "none"
        raise InputError(f"{root} must hold a directory of images for each class, got {got}.")
    files: list[Path] = []
    classes: list[str] = []
    left: list[Path] = [path for path in root.iterdir() if path.is_file() and not _is_hidden(path)]
    for directory in directories:
        own = list(_files(directory))
        images = [path for path in own if path.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(
                f"{directory} must hold at least one image of the class {directory.name}, got none."
            )
        files += images
        classes += [directory.name] * len(images)
        left += [path for path in own if path.suffix.lower() not in SUFFIXES]
    if len(directories) < 2:
        raise InputError(f"{root} must hold at least two classes, got {directories[0].name} alone.")
    return ClassFolders(root, tuple(files), tuple(classes), tuple(left))


def _directories(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links too, but none that is hidden or twice there."""
    seen: set[Path] = set()
    for root, directories, names in os.walk(folder, followlinks=True):
        here = Path(root).resolve()
        kept = [] if here in seen else sorted(d for d in directories if not _is_hidden(Path(d)))
        directories[:] = kept
        if here not in seen:
            yield from (Path(root) / name for name in sorted(names) if not _is_hidden(Path(name)))
        seen.add(here)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("Thumbs.db", "__MACOSX")
