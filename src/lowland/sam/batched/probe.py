"""Whether a loss can be run for all groups at once, and what that holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowland.sam.batched.cost import machine, seconds
from lowland.sam.batched.evaluator import Evaluator, Recorded
from lowland.sam.batched.memory import held_bytes, what_is_saved
from lowland.sam.batched.reachable import Reachable
from lowland.sam.batched.refused import (
    refuse_modules,
    refuse_shared_memory,
    require_gone,
    require_known,
    require_no_draws,
)
from lowland.sam.functional import Functional
from lowland.sam.linearized import Linearized
from lowland.sam.objective import Objective
from lowland.sam.randomness import RandomState
from lowland.sam.stacked import Stacked


@dataclass(frozen=True)
class Probe:
    """What a pass over a single group showed.

    Attributes:
        found: The pass.
        saved: Bytes that its backward pass held on to, or made again.
        recorded: Bytes of its gradients as they are recorded, those by the outputs of a loss in halves too.
    """

    found: Recorded
    saved: int
    recorded: int

    def loop_is_faster(
        self, groups: int, chunks: int, params: Sequence[Tensor], *, captured: bool = False
    ) -> bool:
        """Whether ``groups`` like this one take longer in so many chunks than one after the other."""
        weights, at = sum(p.numel() for p in params), machine(params[0].device, captured=captured)
        products, calls = self.found.products, self.found.calls
        loop, batched = seconds(products, groups, chunks, calls=calls, params=weights, at=at)
        return loop < batched


def probe(objective: Objective, one: Stacked, *, planned_groups: int, forms: bool) -> Probe:
    """Runs one group by itself; buffers, attributes and generators are what they were.

    Args:
        objective: The loss.
        one: The group.
        planned_groups: Number of groups to choose forms for.
        forms: Whether gradients are to be formed.

    Raises:
        Unbatchable: If the loss, or one of its modules, cannot be run for several groups at once.
    """
    refuse_modules(objective)
    refuse_shared_memory(objective.params)
    params, one = objective.params, one.copied()
    run = Evaluator(objective, forms, planned_groups=planned_groups, probes=True)
    linearized = Linearized(objective) if isinstance(objective.loss, Functional) else None
    put_back = Reachable(objective.loss, objective.buffers.modules()).taken()
    draws = RandomState.capture(objective.devices)
    try:
        with objective.buffers.kept() as kept, what_is_saved() as saved:
            found = run.recorded(one, range(len(params)), first=True, linearized=linearized)
            require_known(kept.changed(), found.changed)
            require_no_draws(draws, planned_groups)
            require_gone(run.results)
    except BaseException:
        put_back()
        raise
    finally:
        draws.restore()
    put_back()
    modules = objective.buffers.modules()
    held = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    of_outputs = [] if linearized is None else linearized.leaves
    recorded = held_bytes(found.gradient) + sum(r.numel() * r.element_size() for r in of_outputs)
    return Probe(found, saved.bytes([*params, *one.leaves, *held]) + found.saved_again, recorded)
