"""Inputs: pixels, other numbers, or sequences of tokens that are padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

from lowland.deep.data.own.examples import Raw
from lowland.deep.data.own.targets import require_finite_rows
from lowland.errors import InputError

_CHANNELS = (1, 3, 4)


def settled_inputs(raw: Raw, where: str) -> tuple[Tensor, Tensor | None]:
    """The inputs as a tensor, and which of them are no padding if they are tokens.

    Bytes in three or four dimensions are pixels, other whole numbers are tokens, and the rest are numbers.

    Args:
        raw: As somebody has them.
        where: Where they come from, for errors.

    Raises:
        InputError: If they are no such inputs.
    """
    if _is_ragged(raw.inputs):
        if raw.mask is not None:
            raise InputError(f"the mask of {where} must be left out for sequences of several lengths.")
        return padded(raw.inputs, where)
    inputs = _tensor(raw.inputs, f"inputs of {where}")
    if inputs.is_complex():
        raise InputError(f"inputs of {where} must be real numbers, got {inputs.dtype}.")
    if inputs.dim() == 1 and inputs.is_floating_point():
        inputs = inputs[:, None]
    if inputs.dtype == torch.uint8 and inputs.dim() in (3, 4):
        _require_no_mask(raw, where)
        return _pixels(inputs, where), None
    if inputs.is_floating_point() or inputs.dtype == torch.bool:
        _require_no_mask(raw, where)
        return _numbers(inputs, where), None
    return _tokens(inputs, raw.mask, where)


def padded(
    sequences: Sequence[Any], where: str
) -> tuple[Int64[Tensor, "n length"], Bool[Tensor, "n length"]]:
    """Sequences of tokens, with zeros behind the shorter ones, and which of them are no padding.

    Raises:
        InputError: If one is no sequence of whole numbers from 0, or none has any.

    Example:
        >>> tokens, mask = padded([[5, 6, 7], [8]], "these")
        >>> tokens.tolist(), mask.int().tolist()
        ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    rows = []
    for i, sequence in enumerate(sequences):
        if not len(sequence):
            raise InputError(f"row {i} of {where} must have at least one token, got none.")
        row = _tensor(sequence, f"row {i} of {where}")
        if row.dim() != 1 or row.is_floating_point() or row.dtype == torch.bool:
            raise InputError(
                f"row {i} of {where} must be a sequence of tokens where lengths differ, "
                f"got {row.dtype} of shape {tuple(row.shape)}."
            )
        rows.append(row.long())
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])
    return _non_negative(tokens, where), torch.arange(longest) < lengths[:, None]


def _is_ragged(inputs: Any) -> bool:
    if isinstance(inputs, (Tensor, np.ndarray)):
        return False
    return len({np.shape(one) for one in inputs}) > 1  # where one has none, NumPy says so


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if not isinstance(values, np.ndarray) and any(isinstance(one, Tensor) for one in values[:1]):
        return torch.stack([torch.as_tensor(one).detach().cpu() for one in values])
    try:
        array = np.asarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.ascontiguousarray(array).astype(_torch_knows(array.dtype), copy=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} must be numbers of one shape: {str(error).partition(chr(10))[0]}."
        ) from None


def _torch_knows(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Unsigned numbers of more than a byte have few operations in torch."""
    return np.dtype(np.int64) if dtype.kind == "u" and dtype.itemsize > 1 else dtype


def _pixels(images: Tensor, where: str) -> Tensor:
    """Images (n, channels, height, width); without channels they have one."""
    if images.dim() == 3:
        return images[:, None].contiguous()
    channels, last = images.shape[1], images.shape[3]
    if last in _CHANNELS and channels not in _CHANNELS:
        raise InputError(
            f"images of {where} must be (n, channels, height, width), got {tuple(images.shape)}; "
            "x.transpose(0, 3, 1, 2) moves the channels."
        )
    return images.contiguous()


def _numbers(inputs: Tensor, where: str) -> Tensor:
    numbers = inputs.float().contiguous()
    if numbers[0].numel() == 0:
        raise InputError(f"inputs of {where} must have at least one number each, got none.")
    require_finite_rows(numbers, f"inputs of {where}")
    return numbers


def _tokens(inputs: Tensor, mask: Any, where: str) -> tuple[Tensor, Tensor]:
    if inputs.dim() != 2:
        raise InputError(
            f"inputs of {where} must be tokens (n, length), bytes (n, channels, height, width), or "
            f"floating-point numbers of any shape, got {inputs.dtype} of shape {tuple(inputs.shape)}."
        )
    tokens = _non_negative(inputs.long(), where)
    if mask is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    kept = _tensor(mask, f"the mask of {where}")
    if kept.shape != tokens.shape or not bool(((kept == 0) | (kept == 1)).all()):
        raise InputError(
            f"the mask of {where} must be 1 at each token and 0 at padding, of the tokens' shape "
            f"{tuple(tokens.shape)}, got {kept.dtype} of shape {tuple(kept.shape)}."
        )
    kept = kept.bool()
    if not bool(kept.any(1).all()):
        row = int((~kept.any(1)).nonzero()[0])
        raise InputError(f"the mask of {where} must keep a token of every example, got none in row {row}.")
    return tokens, kept


def _non_negative(tokens: Tensor, where: str) -> Tensor:
    if tokens.numel() == 0 or int(tokens.min()) < 0:
        got = "none" if tokens.numel() == 0 else int(tokens.min())
        raise InputError(f"tokens of {where} must be whole numbers from 0, got {got}.")
    return tokens


def _require_no_mask(raw: Raw, where: str) -> None:
    if raw.mask is not None:
        raise InputError(f"the mask of {where} must be left out for what is no sequence of tokens.")
