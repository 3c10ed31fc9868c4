"""Text for terminals that have few letters: legible, whatever the encoding."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HANDLER = "lowland.legible"
_NAMES = "alpha beta gamma delta eps eta theta lambda mu rho sigma phi Delta Sum"
_SIGNS = "- - - ... -> <- x * +/- || integral inf sqrt <= >= ~ l yes no * ^2 ^3 /"
_SPELLED = {
    **dict(zip("αβγδεηθλμρσφΔΣ", _NAMES.split(), strict=True)),
    **dict(zip("–—−…→←×·±‖∫∞√≤≥≈ℓ✓✗•²³⁄", _SIGNS.split(), strict=True)),
    **dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)),
    **dict(zip("‘’“”", "''\"\"", strict=True)),
}


def legible(text: str, encoding: str) -> str:
    """The text in letters that the encoding has: others are spelled out, as ``rho``, or become ``?``.

    Example:
        >>> legible("λ₁ ± 2 at ρ = 0.1, naïve ☃", "ascii")
        'lambda1 +/- 2 at rho = 0.1, naive ?'
    """
    return text.encode(encoding, _HANDLER).decode(encoding, "replace")


@contextmanager
def legible_streams() -> Iterator[None]:
    """Inside the block nothing that is printed fails for its letters."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for the first character that cannot be encoded; a file name's bytes stay what they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if 0xDC80 <= ord(letter) <= 0xDCFF:
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return _spelled(letter), error.start + 1


def _spelled(letter: str) -> str:
    import unicodedata

    if letter in _SPELLED:
        return _SPELLED[letter]
    if 0x2500 <= ord(letter) <= 0x257F:  # frames and bars
        name = unicodedata.name(letter)
        return "|" if name.endswith("VERTICAL") else "-" if "HORIZONTAL" in name.split()[-1] else "+"
    if unicodedata.category(letter) in {"Mn", "Cf"}:
        return ""
    parts = unicodedata.normalize("NFKD", letter)
    return "?" if parts == letter else "".join(p if p.isascii() else _spelled(p) for p in parts)


codecs.register_error(_HANDLER, _replaced)
