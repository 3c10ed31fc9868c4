"""How a batch of a Hugging Face trainer lies in its tensors, where an example is not a row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k")
_LONGEST = ("max_length_q", "max_length_k")


class Packed:
    """Sequences that lie in one row of tokens, one behind the other: each is an example.

    Args:
        inputs: The model's arguments by name, of one row.
        starts: Where the sequences begin, and the number of tokens.
    """

    def __init__(self, inputs: Mapping[str, Any], starts: list[int]) -> None:
        self._inputs, self._starts = dict(inputs), starts

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Packed | None:
        """The sequences of a batch that is one row of several; ``None`` for other batches.

        Raises:
            ValueError: If the row cannot be cut between its sequences.
        """
        starts = _starts(inputs)
        if starts is None or len(starts) < 3:
            return None
        tokens = starts[-1]
        for name, value in inputs.items():
            in_row = isinstance(value, Tensor) and value.dim() >= 2 and value.shape[:2] == (1, tokens)
            square = in_row and value.dim() > 2 and tokens in value.shape[2:]
            if isinstance(value, Tensor) and name not in (*_BOUNDS, *_LONGEST) and (square or not in_row):
                raise ValueError(
                    "a packed batch that is cut into groups must have one entry for each of its "
                    f"{tokens} tokens, got shape {tuple(value.shape)} for {name!r}."
                )
        labels = inputs.get("labels")
        if isinstance(labels, Tensor) and bool((labels[0, starts[1:-1]] != -100).any()):
            raise ValueError(
                "labels of a packed batch that is cut into groups must be -100 where a sequence begins, got "
                "others, which the sequence before would predict."
            )
        return cls(inputs, starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, rows: slice) -> Packed:
        """Consecutive sequences."""
        first, last, _ = rows.indices(len(self))
        begin, end = self._starts[first], self._starts[last]
        starts = [start - begin for start in self._starts[first : last + 1]]
        longest = max(b - a for a, b in itertools.pairwise(starts))
        inputs = {}
        for name, value in self._inputs.items():
            if name in _BOUNDS:
                inputs[name] = value[first : last + 1] - begin
            elif name in _LONGEST:
                inputs[name] = value.new_tensor(longest) if isinstance(value, Tensor) else longest
            else:
                inputs[name] = value[:, begin:end] if isinstance(value, Tensor) else value
        if isinstance(inputs.get("seq_idx"), Tensor):
            inputs["seq_idx"] = inputs["seq_idx"] - inputs["seq_idx"].min()
        return Packed(inputs, starts)

    def inputs(self) -> dict[str, Any]:
        """The model's arguments by name."""
        return dict(self._inputs)


def in_pairs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of all chosen and then all rejected answers, with one row for each pair."""
    rows = inputs["input_ids"].shape[0]
    pairs: dict[str, Any] = {}
    each: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows:
            pairs[name] = value.reshape(2, rows // 2, *value.shape[1:]).transpose(0, 1)
        else:
            each[name] = value
    return {"pairs": pairs, "each": each}


def out_of_pairs(examples: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of which :func:`in_pairs` made ``examples``, or some of them."""
    pairs = {name: value.transpose(0, 1).flatten(0, 1) for name, value in examples["pairs"].items()}
    return {**pairs, **examples["each"]}


def _starts(inputs: Mapping[str, Any]) -> list[int] | None:
    """Where the sequences of a single row begin, and its length; ``None`` if there is nothing to tell it."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        return None
    bounds, positions, index = (inputs.get(name) for name in ("cu_seq_lens_q", "position_ids", "seq_idx"))
    if isinstance(bounds, Tensor):
        return [int(bound) for bound in bounds]
    mask = inputs.get("attention_mask")
    padded = isinstance(mask, Tensor) and not bool(mask.all())
    if isinstance(positions, Tensor) and positions.shape == ids.shape and not padded:
        begins = positions[0, 1:] <= positions[0, :-1]
    elif isinstance(index, Tensor) and index.shape == ids.shape:
        begins = index[0, 1:] != index[0, :-1]
    else:
        return None
    return [0, *(torch.nonzero(begins).flatten() + 1).tolist(), ids.shape[1]]
