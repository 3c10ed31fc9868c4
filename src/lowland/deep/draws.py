"""What of a network and a loss draws random numbers, and from where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lowland.deep.averaging import set_training_mode
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import Criterion
from lowland.deep.data import Split, TrainingData
from lowland.deep.models import Dropout, example_keys
from lowland.deep.objective import Objective, as_given
from lowland.deep.processes import Ranks
from lowland.deep.seeding import generators_kept
from lowland.sam.before import devices_of
from lowland.sam.buffers import Buffers, same_numbers
from lowland.sam.randomness import RandomState


@dataclass(frozen=True)
class Draws:
    """What is random in a training pass.

    Attributes:
        keyed: Whether it has dropout, whose masks are made of the examples' keys.
        elsewhere: Whether something draws, or may draw, from a default generator of PyTorch, NumPy or Python.
        moved: Buffers that a pass moves, where it was looked for.
    """

    keyed: bool = False
    elsewhere: bool = False
    moved: tuple[str, ...] = ()


def draws_of(
    config: TrainConfig, model: nn.Module, data: TrainingData, criterion: Criterion, ranks: Ranks
) -> Draws:
    """What draws in training passes of ``model``.

    The dropout layers of a network of the user's become :class:`~lowland.deep.models.Dropout`,
    unless something else draws beside them: a run whose draws are a generator's stays one.

    Args:
        config: The run.
        model: Its network, on the device of the data.
        data: Its data.
        criterion: How the network's outputs are judged.
        ranks: Which process of how many; one alone need not know what draws where there is no such layer.
    """
    if not (config.has_own_model or config.has_own_loss):
        return Draws(keyed=_has_dropout(model))
    layers = [layer for layer in model.modules() if type(layer) is nn.Dropout]
    if not (layers or _has_dropout(model) or ranks.several):
        return Draws(elsewhere=True)
    for layer in layers:
        layer.__class__ = Dropout
    few, more = (data.train.head(times * config.group_size) for times in (1, 2))
    found = _found_in_a_pass(config, model, few, criterion)
    if found.keyed and len(more) > len(few):  # is the dimension that has so many that of the examples?
        found = _found_in_a_pass(config, model, more, criterion)
    if found.elsewhere:
        for layer in layers:
            layer.__class__ = nn.Dropout
    return found


def _has_dropout(model: nn.Module) -> bool:
    return any(isinstance(layer, Dropout) for layer in model.modules())


def _found_in_a_pass(config: TrainConfig, model: nn.Module, few: Split, criterion: Criterion) -> Draws:
    """What a pass over a few examples moves.

    Dropout that it runs anew on its way back, where no keys are at hand, draws elsewhere.
    """
    has_dropout = _has_dropout(model)
    objective = Objective(config, model, criterion, keyed=has_dropout)
    keys = [example_keys(0, torch.arange(len(few), device=few.targets.device))] if has_dropout else []
    batch = [as_given(config, t).clone() for t in (*few.arguments, few.targets)]
    params = [p for p in model.parameters() if p.requires_grad]
    modes = {module: module.training for module in model.modules()}
    with generators_kept(), Buffers(model).kept(), _counted(model) as count:
        set_training_mode(model, freeze_batch_norm=config.freeze_bn_stats)
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        try:
            before = RandomState.capture(devices_of(params))
            value, _ = objective(*batch, *keys)
            forward = count()
            torch.autograd.grad(value, params, allow_unused=True)
            elsewhere = not before.is_now() or before.drawn_from() is not None or count() > forward
            moved = (name for name, b in model.named_buffers() if not same_numbers(b, buffers[name]))
            return Draws(has_dropout and not elsewhere, elsewhere, tuple(moved))
        finally:
            for module, training in modes.items():
                module.training = training


@contextmanager
def _counted(model: nn.Module) -> Iterator[Callable[[], int]]:
    """How often dropout layers were run so far in the block."""
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    handles = [m.register_forward_pre_hook(count) for m in model.modules() if isinstance(m, Dropout)]
    try:
        yield lambda: runs
    finally:
        for handle in handles:
            handle.remove()
