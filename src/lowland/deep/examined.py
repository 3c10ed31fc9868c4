"""A network's loss over the examples that it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowland.deep.flatness import FlatnessConfig
from lowland.deep.losses import as_logits, cross_entropy
from lowland.deep.objective import AUTOCAST_TYPES, autocast, is_wrong
from lowland.deep.seeding import derive_seed
from lowland.deep.subject import Subject
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
        images: The examples.
        labels: Their labels.
    """

    subject: Subject
    config: FlatnessConfig
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, subject: Subject, config: FlatnessConfig) -> Examined:
        """The examples that ``config`` names."""
        split = subject.split(config.split).head(config.n_eval)
        return cls(subject, config, split.images, split.labels)

    def loss(self, images: Tensor, labels: Tensor, *_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each example, and whether it is wrong."""
        outputs = self.outputs(images, labels)
        return self.criterion(outputs, images, labels), {"error": is_wrong(outputs, labels)}

    def mean_loss(self, images: Tensor, labels: Tensor, *_: Tensor) -> Tensor:
        """The loss of each example."""
        return self.loss(images, labels)[0]

    def outputs(self, images: Tensor, *_: Tensor) -> Tensor:
        """The network's outputs, in float32 or better."""
        with autocast(self.config.half_prec, images.device):
            outputs = self.subject.outputs(images)
        return outputs.float() if outputs.dtype in AUTOCAST_TYPES.values() else outputs

    def criterion(self, outputs: Tensor, images: Tensor, labels: Tensor, *_: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of each output."""
        logits = as_logits(outputs)
        return cross_entropy(normalized_logits(logits) if self.config.logit_norm else logits, labels)

    def towards_targets(self, images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Rises as the loss of the targets falls."""
        return -self.mean_loss(images, targets)

    def engine(self, m: int | None) -> Engine:
        """How groups of ``m`` are run: those in several parts one after the other."""
        return "loop" if self._in_parts(m) else self.config.engine

    def _in_parts(self, m: int | None) -> bool:
        return min(m or len(self.labels), len(self.labels)) > _LARGEST_GROUP

    def examples(self, m: int | None) -> Any:
        """The loss's arguments, in parts if groups of ``m`` are too large to be run in one piece."""
        return self.parts() if self._in_parts(m) else tuple(self._tensors())

    def parts(self) -> MicroBatches:
        """The loss's arguments in parts."""
        columns = [torch.split(t, _PART) for t in self._tensors()]
        return MicroBatches(list(zip(*columns, strict=True)))

    def _tensors(self) -> list[Tensor]:
        tensors = [self.images, self.labels]
        return [*tensors, self._targets()] if self.config.random_targets else tensors

    def _targets(self) -> Tensor:
        """For each example a random class that is not its own."""
        with torch.no_grad():
            classes = as_logits(self.outputs(self.images[:1])).shape[1]
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "random targets"))
        shift = torch.randint(1, classes, (len(self.labels),), generator=generator).to(self.labels.device)
        return (self.labels + shift) % classes
