"""A network's loss over the examples that it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowland.deep.data import Split
from lowland.deep.flatness import FlatnessConfig
from lowland.deep.losses import as_logits
from lowland.deep.objective import AUTOCAST_TYPES, autocast
from lowland.deep.seeding import derive_seed, generators_kept
from lowland.deep.subject import Subject
from lowland.errors import InputError, require_default
from lowland.sam import MicroBatches
from lowland.sam.arguments import Engine
from lowland.sharpness.logits import normalized_logits

_PART = 256
"""Examples that curvature is summed over at a time."""

_LARGEST_GROUP = 512
"""Examples of a group that are run in one piece."""


@dataclass(frozen=True)
class Examined:
    """The loss of a network, as the measures ask for it.

    Attributes:
        subject: The network.
        config: How it is measured.
        split: The examples.
    """

    subject: Subject
    config: FlatnessConfig
    split: Split

    @classmethod
    def of(cls, subject: Subject, config: FlatnessConfig) -> Examined:
        """The examples that ``config`` names.

        Raises:
            InputError: If a measure is of classes, and the network predicts numbers.
        """
        if not subject.criterion.has_errors or subject.criterion.name != "ce":
            because = f"for {subject.name}, whose loss {subject.criterion.name} is none of logits"
            require_default(config, ("logit_norm", "random_targets"), because)
            if "knn-error" in config.measure and not subject.criterion.has_errors:
                raise InputError(f"measure knn-error must be left out {because}.")
        return cls(subject, config, subject.split(config.split).head(config.n_eval))

    def loss(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each example, or their mean, and which are wrong if any can be."""
        outputs = self.outputs(*batch)
        return self.criterion(outputs, *batch), self.subject.criterion.notes(outputs, self._targets(batch))

    def mean_loss(self, *batch: Tensor) -> Tensor:
        """The loss of each example, or their mean."""
        return self.loss(*batch)[0]

    @torch.no_grad()
    def level(self) -> dict[str, float]:
        """The mean loss of all examples, and the share of errors if there can be any, from one pass."""
        sums: dict[str, float] = {}
        with generators_kept():
            for part in self.parts():
                loss, notes = self.loss(*part)
                count = len(self._targets(part))
                for name, values in ({"loss": loss} | notes).items():
                    sums[name] = sums.get(name, 0.0) + count * values.double().mean().item()
        return {name: total / len(self.split) for name, total in sums.items()}

    def outputs(self, *batch: Tensor) -> Tensor:
        """The network's outputs, in float32 or better."""
        inputs = batch[: len(self.split.arguments)]
        with autocast(self.config.half_prec, inputs[0].device):
            outputs = self.subject.outputs(*inputs)
        is_half = isinstance(outputs, Tensor) and outputs.dtype in AUTOCAST_TYPES.values()
        return outputs.float() if is_half else outputs

    def criterion(self, outputs: Tensor, *batch: Tensor) -> Tensor:
        """The loss of each output, or their mean."""
        scaled = normalized_logits(as_logits(outputs)) if self.config.logit_norm else outputs
        return self.subject.criterion.loss(scaled, self._targets(batch))

    def towards_targets(self, *batch: Tensor) -> Tensor:
        """Rises as the loss of the random targets, which are the last of the batch, falls."""
        *inputs, _, targets = batch
        return -self.mean_loss(*inputs, targets)

    def _targets(self, batch: Sequence[Tensor]) -> Tensor:
        return batch[len(self.split.arguments)]

    def engine(self, m: int | None) -> Engine:
        """How groups of ``m`` are run: those in several parts one after the other."""
        return "loop" if self._in_parts(m) else self.config.engine

    def _in_parts(self, m: int | None) -> bool:
        return min(m or len(self.split), len(self.split)) > _LARGEST_GROUP

    def examples(self, m: int | None) -> Any:
        """The loss's arguments, in parts if groups of ``m`` are too large to be run in one piece."""
        return self.parts() if self._in_parts(m) else tuple(self._tensors())

    def parts(self) -> MicroBatches:
        """The loss's arguments in parts."""
        columns = [torch.split(t, _PART) for t in self._tensors()]
        return MicroBatches(list(zip(*columns, strict=True)))

    def _tensors(self) -> list[Tensor]:
        tensors = [*self.split.arguments, self.split.targets]
        return [*tensors, self._random_targets()] if self.config.random_targets else tensors

    def _random_targets(self) -> Tensor:
        """For each example a random class that is not its own."""
        labels = self.split.targets
        with torch.no_grad():
            classes = as_logits(self.outputs(*self.split.head(1).arguments)).shape[1]
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "random targets"))
        shift = torch.randint(1, classes, (len(labels),), generator=generator).to(labels.device)
        return (labels + shift) % classes
