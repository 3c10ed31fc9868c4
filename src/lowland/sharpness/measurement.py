"""What a measure found, and everything that was decided in measuring it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """A number with its standard error.

    Attributes:
        measure: Which one.
        value: The number.
        stderr: Its standard error; NaN if there is one group or sample only.
        examples: Examples that it is a mean over.
        dtype: Of the weights, ``"float32"`` for instance.
        settings: Radius, m, norm, seed and whatever else decided it.
        groups: The value of each group, where it is a mean over groups.
        extras: The same of what the loss returned beside its value, by name.
        also: What else was found, as plain values.
        points: Where it was found, if that was asked for: the perturbations, as the parameters were given,
            each of shape ``(groups, ...)``.
    """

    measure: str
    value: float
    stderr: float
    examples: int
    dtype: str
    settings: Mapping[str, Any]
    groups: Tensor | None = field(default=None, repr=False, compare=False)
    extras: Mapping[str, float] = field(default_factory=dict)
    also: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Tensor] | Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def row(self) -> dict[str, Any]:
        """All of it but the groups and points, flat, for a line of JSON."""
        rises = {f"{name}_rise": value for name, value in self.extras.items()}
        return {
            "measure": self.measure,
            "value": self.value,
            "stderr": self.stderr,
            "examples": self.examples,
            "dtype": self.dtype,
            **rises,
            **self.also,
            **self.settings,
        }


def mean_over_groups(values: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Mean weighted by the groups' examples, and its standard error.

    The error is that of a weighted mean of independent values, and the usual one where sizes are equal.
    """
    shares = sizes.double() / sizes.double().sum()
    values = values.double()
    mean = (shares * values).sum()
    count = len(values)
    if count < 2:
        return mean.item(), float("nan")
    spread = (shares.square() * (values - mean).square()).sum() * count / (count - 1)
    return mean.item(), torch.sqrt(spread).item()


def dtype_name(params: list[Tensor]) -> str:
    """Of the parameters; of all of them if they differ."""
    return "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in params}))
