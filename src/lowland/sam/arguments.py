"""Which arguments of the m-SAM gradient are refused, in words."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from lowland.sam.ascent import Ascent, BlindAscent, StartingAscent
from lowland.sam.batch import MicroBatches
from lowland.sam.choice import OF_SAM, Engine, non_negative, positive
from lowland.sam.combine import Combine
from lowland.sam.containers import tensors_of
from lowland.sam.functional import Functional
from lowland.sam.kinds import is_a
from lowland.sam.part import Part

__all__ = [
    "Engine",
    "check_along_gradient",
    "check_batch",
    "check_choices",
    "check_engine",
    "check_loss",
    "check_numbers",
    "check_params",
    "check_rho",
    "check_together",
    "loss_arguments",
    "names_of",
]


def check_params(params: Sequence[Tensor]) -> None:
    """Refuses params that cannot be climbed."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "SAM needs gradients: it must be called outside torch.inference_mode, got it inside."
        )
    if not params:
        raise ValueError("params must hold at least one tensor that requires a gradient, got none.")
    for p in params:
        if not isinstance(p, Tensor):
            raise TypeError(f"params must be tensors, got {type(p).__name__}.")
        if isinstance(p, UninitializedParameter):
            raise ValueError(
                "params must be initialized, got one of a lazy module: give it a batch before the first step."
            )
        if p.device.type == "meta":
            raise ValueError("params must have memory, got one on the device meta.")
        if not p.is_floating_point():
            raise TypeError(f"params must be real floating-point tensors, got {p.dtype}.")
        if not (p.is_leaf and p.requires_grad):
            raise ValueError(
                "params must be leaf tensors that require gradients, "
                f"got is_leaf={p.is_leaf} and requires_grad={p.requires_grad}."
            )
    if len({id(p) for p in params}) < len(params):
        raise ValueError("params must be different tensors, got one twice.")


def check_loss(loss: Any, ascent: Ascent | BlindAscent) -> None:
    """Refuses what a loss returned in place of the loss itself, and halves of which nothing is seen at w."""
    if not callable(loss):
        raise TypeError(
            "loss must be a function, which is called with the batch: backward(loss, x, y), not "
            f"backward(loss(x, y), x, y); got {type(loss).__name__}."
        )
    if isinstance(loss, Functional) and is_a(ascent, StartingAscent):
        name = type(ascent).__name__
        raise ValueError(f"loss must not be Functional with {name}, which starts elsewhere, got one.")


def check_batch(batch: Any, params: Sequence[Tensor]) -> None:
    """Refuses arguments of the loss that were made from the params, which are to move before it runs."""
    if isinstance(batch, MicroBatches):
        return
    nodes = [t.grad_fn for t in tensors_of(tuple(batch)) if t.grad_fn is not None]
    if nodes and _reach(nodes, {id(p) for p in params}):
        raise ValueError(
            "batch must not depend on the params, got a tensor that was made from them: the model is run by "
            "the loss, backward(lambda x, y: criterion(model(x), y), x, y), and not before it, "
            "backward(criterion, model(x), y)."
        )


def check_numbers(*, m: int | None, steps: int, step_size: float, l2: float, scale: float) -> None:
    """Refuses numbers out of their range."""
    for name, value in (("l2", l2), ("step_size", step_size), ("m", m), ("steps", steps)):
        OF_SAM[name](name, value)
    positive("scale", scale)


def check_engine(engine: str, max_memory: int | None) -> None:
    """Refuses engines that there are not."""
    OF_SAM["engine"]("engine", engine)
    OF_SAM["max_memory"]("max_memory", max_memory)


def names_of(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names of entries of a batch, if they are such."""
    OF_SAM[option](option, names)
    return tuple(names)


def check_rho(rho: float | Sequence[float], num_params: int) -> None:
    """Refuses radii that are none."""
    single = isinstance(rho, (Real, str)) or rho is None
    radii: list[Any] = [rho] if single else list(rho)  # type: ignore[arg-type]
    if not single and len(radii) != num_params:
        raise ValueError(f"rho must be one radius or one per parameter, {num_params}, got {len(radii)}.")
    for radius in radii:
        non_negative("rho", radius)


def check_choices(
    ascent: Ascent | BlindAscent,
    bn_stats: str,
    steps: int,
    ascent_batch: Sequence[Any] | MicroBatches | None,
    combine: Combine | None,
    reduction: str,
) -> None:
    """Refuses choices that there are not, and combinations that mean nothing."""
    chosen = {"bn_stats": bn_stats, "ascent": ascent, "combine": combine, "reduction": reduction}
    for option, value in chosen.items():
        OF_SAM[option](option, value)
    check_together(ascent, steps, combine)
    if is_a(ascent, BlindAscent) and ascent_batch is not None:
        name = type(ascent).__name__
        raise ValueError(f"ascent_batch must be None with {name}, which needs no gradient, got a batch.")


def check_together(
    ascent: Ascent | BlindAscent, steps: int, combine: Combine | None, source: Any = None
) -> None:
    """Refuses several steps, rules and sources beside ascents that cannot have them."""
    name = type(ascent).__name__
    starts, blind = is_a(ascent, StartingAscent), is_a(ascent, BlindAscent)
    why = ", which starts elsewhere" if starts else ", which needs no gradient" if blind else ""
    if steps > 1 and (why or getattr(ascent, "one_step", False)):
        raise ValueError(f"steps must be 1 with {name}{why}, got {steps}.")
    if starts and combine is not None:
        raise ValueError(f"combine must be None with {name}, which starts elsewhere, got {combine!r}.")
    if blind and source is not None:
        raise ValueError(
            f"source must be None with {name}, which needs no gradient, got {type(source).__name__}."
        )


def check_along_gradient(part: Any) -> None:
    """Refuses a part that does more than ``SAMOptimizer`` can, which has one gradient to climb along."""
    elsewhere = is_a(part, BlindAscent) or is_a(part, StartingAscent)
    if elsewhere or "step(closure)" not in getattr(part, "ways", Part.ways):
        name = type(part).__name__
        raise TypeError(f"SAMOptimizer must have an ascent along .grad, got {name}: use lowland.SAM.")


def loss_arguments(name: str, batch: Any) -> Sequence[Any] | MicroBatches:
    """``batch``, if it is one."""
    if isinstance(batch, (tuple, list, MicroBatches)):
        return batch
    raise TypeError(
        f"{name} must be the tuple of the loss's arguments or MicroBatches, got {type(batch).__name__}."
    )


def _reach(nodes: list[Any], leaves: set[int]) -> bool:
    """Whether a graph of autograd leads to some of the ``leaves``."""
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if id(getattr(node, "variable", None)) in leaves:
            return True
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        nodes.extend(following)
    return False
