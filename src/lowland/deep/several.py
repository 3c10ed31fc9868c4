"""Networks side by side: each is told those options that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from lowland.deep.functions import is_function
from lowland.deep.loading import OF_FILES, OF_MODELS, load_subject
from lowland.deep.subject import Subject, SubjectOptions


def load_subjects(sources: Sequence[str], options: SubjectOptions) -> list[Subject]:
    """Networks and their data; an option that one of them needs may be none of the others'.

    Args:
        sources: What :func:`~lowland.deep.loading.load_subject` takes.
        options: What the sources do not say.

    Raises:
        InputError: If one of them cannot be loaded, or none reads an option that is given.
    """
    unread = [_unread(source, options.model) for source in sources]
    by_none = set.intersection(*unread)
    return [
        load_subject(source, _without(options, names - by_none))
        for source, names in zip(sources, unread, strict=True)
    ]


def _unread(source: str, model: str | None) -> set[str]:
    """Options that say nothing of this source."""
    path = Path(source)
    if path.is_dir():
        return {*OF_FILES}
    if path.is_file():
        return {*OF_MODELS} if model is not None and is_function(model) else {"model_arg"}
    return {"model", *OF_MODELS, "kind"}


def _without(options: SubjectOptions, names: set[str]) -> SubjectOptions:
    defaults = {field.name: field.default for field in fields(SubjectOptions) if field.name in names}
    return replace(options, **defaults)  # type: ignore[arg-type]
