"""How the parameters of a call are held: whole by this process, or cut into shards by ``fully_shard``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lowland.sam.average import Gradients
from lowland.sam.engine import Plan
from lowland.sam.named import modules_named_by
from lowland.sam.pieces import is_cut, refuse_unknown

if TYPE_CHECKING:
    from lowland.sam.sharded.sharded import Sharded


@dataclass(frozen=True)
class Options:
    """What is asked for that not every way of holding parameters has a form for, as the call was given it."""

    loss: Any
    batch: Any
    ascent: Any
    engine: str
    process_group: ProcessGroup | None
    combine: Any
    ascent_batch: Any
    captures: Any
    max_memory: int | None


class Whole:
    """Parameters that this process has whole.

    Args:
        params: They.

    Attributes:
        params: What the passes see.
        names_too: Other tensors that stand in their places.
        trained: What is not watched as frozen parameters are.
    """

    names_too: Sequence[Tensor] = ()

    def __init__(self, params: list[Tensor]) -> None:
        self.params = self.trained = params

    def at_work(self, *, deposits: bool) -> AbstractContextManager[object]:  # noqa: ARG002 - of all of them
        """The block of a call's passes.

        Args:
            deposits: Whether what they find goes to ``.grad``.
        """
        return nullcontext()

    def planned(self, plan: Plan, *, alike: bool) -> Plan:  # noqa: ARG002 - of all of them
        """How the groups of a call are run.

        Args:
            plan: How those of whole parameters are.
            alike: Whether those of processes that climb together are of the same sizes.
        """
        return plan

    def gradients(self, own: Gradients, l2: float) -> Gradients:  # noqa: ARG002 - of all of them
        """The gradients of a call.

        Args:
            own: What the passes returned.
            l2: What the weights count in them that the passes did not see.
        """
        return own


def held(module: nn.Module | None, params: list[Tensor], options: Options) -> Whole | Sharded:
    """How ``params`` are held.

    Args:
        module: The module that they are of, if there is one to name.
        params: The parameters that are trained.
        options: What is asked for.

    Raises:
        ValueError: If there is no way for how they are held, or the way has no form for the options.
    """
    if not is_cut(module, params):
        return Whole(params)
    refuse_unknown(module, params)
    from lowland.sam.sharded.options import check_options

    assert module is not None
    check_options(options)
    try:
        from lowland.sam.sharded.sharded import Sharded
    except ImportError as error:
        raise ValueError(f"torch must have the fully_shard of 2.13, got one without it: {error}") from error
    return Sharded(module, params, options.process_group, modules_named_by(options.loss))
