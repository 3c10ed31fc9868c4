"""The cache of decoded images: hit, miss, damage, and two writers at once."""

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowland.deep.data import cache, load_training_data, training_data
from lowland.deep.data.cache import cached, sha256_of
from lowland.errors import InputError

SHA = "0123456789abcdef" * 4
SOURCES = (Path("/somewhere/train-00000-of-00001.parquet"),)


def decode() -> tuple[Tensor, Tensor]:
    images = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([4, 0, 2, 1, 3])


def never() -> tuple[Tensor, Tensor]:
    raise AssertionError("decoded again")


def write(folder: Path) -> Path:
    cached("set-train", SOURCES, SHA, decode, cache_dir=folder)
    return folder / "set-train-0123456789ab.safetensors"


def test_what_is_opened_is_what_was_decoded_and_is_not_decoded_again(tmp_path: Path) -> None:
    for make in (decode, never):
        images, labels = cached("set-train", SOURCES, SHA, make, cache_dir=tmp_path)
        assert torch.equal(images, decode()[0])
        assert torch.equal(labels, decode()[1])


def test_the_file_says_what_it_was_made_from_and_is_the_only_one(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder")
    assert [file.name for file in path.parent.iterdir()] == ["set-train-0123456789ab.safetensors"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "sources", "sha256", "checksum", "about"}
    assert json.loads(metadata["sources"]) == ["train-00000-of-00001.parquet"]
    assert metadata["sha256"] == SHA


def test_the_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_opened_images_are_mapped_and_writing_to_them_leaves_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    images, _ = cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path)
    if (maps := Path("/proc/self/maps")).exists():
        assert str(path) in maps.read_text()
    images.zero_()
    assert path.read_bytes() == before
    assert torch.equal(cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path)[0], decode()[0])


def test_any_tampered_byte_of_the_tensors_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - header == 5 * 3 * 4 * 6 + 5 * 8
    for position in range(header, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match=rf"^{path} must be .* its checksum is wrong; delete it"):
            cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, length: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        InputError, match=rf"^{path} must be .* reading it failed: .*; delete it and it is made again\.$"
    ):
        cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    images, labels = decode()
    save_file({"images": images, "labels": labels}, path)
    with pytest.raises(InputError, match=rf"^{path} must be .* it is something else; delete it"):
        cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path)
    path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(InputError, match=rf"^{path} must be .* reading it failed: .*; delete it"):
        cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path)


def test_another_sets_file_under_this_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    other = SHA[:12] + "f" * 52
    with pytest.raises(InputError, match=rf"^{path} must be .* it was made from other files; delete it"):
        cached("set-train", SOURCES, other, never, cache_dir=tmp_path)


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    both_have_missed = threading.Barrier(2)

    def slow() -> tuple[Tensor, Tensor]:
        both_have_missed.wait(timeout=300)
        return decode()

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(cached, "set-train", SOURCES, SHA, slow, cache_dir=tmp_path) for _ in range(2)]
        results = [future.result() for future in running]
    assert all(torch.equal(images, decode()[0]) for images, _ in results)
    assert [file.name for file in tmp_path.iterdir()] == ["set-train-0123456789ab.safetensors"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(cache.os, "fsync", fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        write(tmp_path)
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"The cache folder {tmp_path} must be writable, but writing failed: No space left on device."
        )


def test_a_cache_folder_that_is_a_file_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^The cache folder .*file must be writable"):
        cached("set-train", SOURCES, SHA, never, cache_dir=tmp_path / "file")


def test_the_folder_is_the_argument_or_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "set-train-0123456789ab.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOWLAND_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cached("set-train", SOURCES, SHA, decode, cache_dir=None)
    assert (tmp_path / "home/.cache/lowland" / name).exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached("set-train", SOURCES, SHA, decode, cache_dir=None)
    assert (tmp_path / "xdg/lowland" / name).exists()
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "ours"))
    cached("set-train", SOURCES, SHA, decode, cache_dir=None)
    assert (tmp_path / "ours" / name).exists()
    cached("set-train", SOURCES, SHA, decode, cache_dir=str(tmp_path / "argument"))
    assert (tmp_path / "argument" / name).exists()


def test_the_hash_of_several_files_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    # FIPS 180-2, appendix B.1: the hash of "abc"
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of([tmp_path / "a", tmp_path / "b"]) == expected


def test_a_set_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_training_data("digits", cache_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rsplit("-", 1)[0] for name in names] == ["digits-test", "digits-train"]
    monkeypatch.setattr(training_data, "read_images", lambda *_: never())
    second = load_training_data("digits", cache_dir=tmp_path)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.targets, second.test.targets)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
