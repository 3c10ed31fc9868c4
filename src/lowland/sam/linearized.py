"""The criterion of a loss in halves, as the passes of functional SAM see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lowland.sam.containers import mapped, tensors_of, version_of
from lowland.sam.examples import Part
from lowland.sam.functional import Functional
from lowland.sam.leaves import nodes_of
from lowland.sam.objective import Objective
from lowland.sam.precision import working

Through = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""How a function of an output is called."""


class Linearized:
    """A loss in halves, of a part or of many groups at once: itself at ``w``, then linear in the outputs.

    The pass at ``w`` keeps the gradient of the criterion by the outputs, and the last pass is their inner
    product with it, so that no criterion runs there.

    Args:
        objective: The loss and its policies.
    """

    def __init__(self, objective: Objective) -> None:
        assert isinstance(objective.loss, Functional)
        self._objective, self._loss = objective, objective.loss
        self._begun: list[tuple[Tensor | None, int]] = []
        self._slopes: list[Tensor | None] | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """What is kept from the pass at ``w``; nothing before it."""
        return [r for r in self._slopes or () if r is not None]

    def value(
        self,
        part: Part,
        examples: int | None,
        mass: float,
        *,
        through: Through | None = None,
        leaves: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Any]:
        """Value and aux of a part.

        Args:
            part: The loss's arguments.
            examples: Their number.
            mass: Their weight.
            through: How what marks the outputs is called with them; by default as it is.
            leaves: What stands for :attr:`leaves`, by default they themselves.
        """
        outputs = self._loss.outputs(*part)
        if self._slopes is not None:
            return self._along(outputs, part, examples, mass, self.leaves if leaves is None else leaves), None

        def begun(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            return self._begin(t) if through is None else through(self._begin, t)

        outputs = mapped(begun, outputs)
        with torch.enable_grad():
            found = self._objective.checked(self._loss.criterion(outputs, *part), examples, mass)
        if any(found[0] is t for t in tensors_of(outputs)):
            raise ValueError("criterion must make the loss of the outputs, got one of them as it is.")
        return found

    def gradients(
        self, scaled: Tensor, inputs: Sequence[Tensor], over: float | Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients by the inputs; at ``w`` those by the outputs are kept.

        Args:
            scaled: The value, or the sum of those of all groups, times ``over``.
            inputs: What to differentiate by.
            over: What the value of each group was multiplied with.
        """
        if self._slopes is not None:
            return torch.autograd.grad(scaled, inputs, allow_unused=True)
        if any(begun is not None and version_of(begun) != version for begun, version in self._begun):
            raise ValueError("criterion must leave the outputs as they are, got one that writes to them.")
        outputs = [begun for begun, _ in self._begun if begun is not None]
        self._require_between(scaled, outputs, [*self._objective.params, *inputs])
        found = torch.autograd.grad(scaled, [*inputs, *outputs], allow_unused=True)
        by_outputs = iter(found[len(inputs) :])
        slopes = [None if begun is None else next(by_outputs) for begun, _ in self._begun]
        if all(r is None for r in slopes):
            raise ValueError("criterion must depend on the outputs, got one that does not.")
        self._slopes = [None if r is None else _over(r, over) for r in slopes]
        self._begun = []
        return found[: len(inputs)]

    def keep(self, values: Tensor) -> None:
        """Keeps the gradients by the outputs, where there is no other to take."""
        self._objective.require_gradient(values)
        scale = self._objective.scale
        with torch.enable_grad():
            self.gradients(self._objective.scaled(values.sum()), (), scale)

    def _begin(self, output: Tensor) -> Tensor:
        """An output where the criterion begins."""
        begun = output.view_as(output) if torch.is_grad_enabled() else output.detach().requires_grad_()
        self._begun.append((begun if begun.requires_grad else None, version_of(begun)))
        return begun

    def _along(
        self, outputs: Any, part: Part, examples: int | None, mass: float, leaves: Sequence[Tensor]
    ) -> Tensor:
        """The inner product of outputs and gradient; where it is measured its value is the loss's."""
        assert self._slopes is not None
        tensors = [t for t in tensors_of(outputs) if t.is_floating_point()]
        rest = iter(leaves)
        slopes = [None if slope is None else next(rest) for slope in self._slopes]
        if len(tensors) != len(slopes) or any(
            r is not None and r.shape != t.shape for t, r in zip(tensors, slopes, strict=True)
        ):
            raise ValueError(
                "outputs must return tensors of the same shapes in each pass, got others at the perturbed "
                f"weights: {', '.join(str(tuple(t.shape)) for t in tensors)}."
            )
        pairs = [(working(t), r) for t, r in zip(tensors, slopes, strict=True) if r is not None]
        if not self._objective.measure:
            return torch.stack([(t * r).sum() for t, r in pairs]).sum()
        with torch.no_grad():
            loss, _ = self._objective.checked(self._loss.criterion(outputs, *part), examples, mass)
        # an infinite output that does not count, a logit that is masked, makes no number of the product
        found = torch.stack([(t.masked_fill(r == 0.0, 0.0) * r).sum() for t, r in pairs]).sum()
        return found - found.detach() + loss

    def _require_between(self, value: Tensor, outputs: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
        """Refuses a criterion that parameters reach past the outputs: the last pass would not see them."""
        known = {id(t) for t in ours}
        past = nodes_of(value, until=outputs)
        if any(id(getattr(node, "variable", None)) in known for node in past):
            raise ValueError(
                "criterion must depend on the params through the outputs only, got one that also uses "
                "them by itself (outputs may return them, or what is made of them)."
            )


def evaluated(
    objective: Objective,
    linearized: Linearized | None,
    part: Part,
    examples: int | None,
    mass: float,
    *,
    through: Through | None = None,
    leaves: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Any]:
    """Value and aux of a part: of the loss as a whole, or as functional SAM sees it.

    Args:
        objective: The loss and its policies.
        linearized: Its halves; ``None`` for the whole.
        part: The loss's arguments.
        examples: Their number.
        mass: Their weight.
        through: How what marks the outputs is called with them; by default as it is.
        leaves: What stands for the leaves of ``linearized``; by default they themselves.
    """
    if linearized is None:
        return objective.checked(objective.loss(*part), examples, mass)
    return linearized.value(part, examples, mass, through=through, leaves=leaves)


def gradients(
    linearized: Linearized | None,
    scaled: Tensor,
    inputs: Sequence[Tensor],
    over: float | Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients by the inputs; of halves see :meth:`Linearized.gradients`.

    Args:
        linearized: The halves, if they are looked at.
        scaled: What is differentiated.
        inputs: By what.
        over: What it was multiplied with.
    """
    if linearized is None:
        return torch.autograd.grad(scaled, inputs, allow_unused=True)
    return linearized.gradients(scaled, inputs, over)


def _over(slope: Tensor, over: float | Tensor) -> Tensor:
    """The slope of what was multiplied; as it is, in the type of the output, where it was not."""
    if isinstance(over, Tensor) and over.dim() == 0:
        over = over.expand(len(slope))
    if isinstance(over, Tensor):
        return working(slope) / over.to(working(slope)).reshape(-1, *[1] * (slope.dim() - 1))
    return slope if over == 1.0 else working(slope) / over
