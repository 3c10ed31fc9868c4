"""What of a batch each process trains on: whole groups, in the order in which one process would see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.deep.config import TrainConfig
from lowland.deep.draws import Draws
from lowland.deep.needs import has_groups
from lowland.deep.processes import Ranks
from lowland.errors import InputError


@dataclass(frozen=True)
class Share:
    """A process's part of each batch.

    Attributes:
        rows: Which examples of the batch.
        batch_size: Of how many.
        m: Examples that share one perturbation; ``None`` for all of the part.
        is_of_group: Whether the batch is one group, with which the processes climb together.
    """

    rows: slice
    batch_size: int
    m: int | None
    is_of_group: bool = False

    @property
    def size(self) -> int:
        """Number of examples."""
        return int(self.rows.stop - self.rows.start)

    @property
    def weight(self) -> float:
        """The share of the batch that it is."""
        return self.size / self.batch_size


def share_of(config: TrainConfig, ranks: Ranks) -> Share:
    """The part of each batch that is this process's.

    Args:
        config: The run.
        ranks: Which process of how many.

    Raises:
        InputError: If there is not a group for each process.

    Example:
        >>> from lowland.deep import Ranks, TrainConfig
        >>> from lowland.deep.share import share_of
        >>> config = TrainConfig(batch_size=128, sam_rho=0.1, m=16)
        >>> [share_of(config, Ranks(rank, 3)).rows for rank in range(3)]
        [slice(0, 32, None), slice(32, 80, None), slice(80, 128, None)]
    """
    batch, m = config.batch_size, config.group_size
    num_groups = -(-batch // m)
    if num_groups == 1:
        _require_enough("batch_size", batch, "examples", ranks)
        return Share(ranks.part(batch), batch, None if ranks.several else m, is_of_group=config.is_sam)
    if num_groups < ranks.size:
        raise InputError(
            f"m must be at most {batch // ranks.size} for {ranks.size} processes, each of which trains on "
            f"whole groups of a batch of {batch}, got {m}; or there must be at most {num_groups} processes."
        )
    groups = ranks.part(num_groups)
    rows = slice(groups.start * m, min(groups.stop * m, batch))
    return Share(rows, batch, min(m, rows.stop - rows.start))


def _require_enough(name: str, count: int, what: str, ranks: Ranks) -> None:
    if count < ranks.size:
        raise InputError(
            f"{name} must be at least the number of processes, {ranks.size}, got {count} {what}."
        )


def require_shareable(config: TrainConfig, model: nn.Module, draws: Draws, ranks: Ranks) -> None:
    """Refuses what several processes cannot do as one would.

    Args:
        config: The run.
        model: Its network.
        draws: What it draws.
        ranks: Which process of how many.

    Raises:
        InputError: If one process is needed, with the options that help.
    """
    if not ranks.several:
        return
    if draws.elsewhere:
        own = f"model {config.model}" if config.has_own_model else f"loss {config.loss}"
        raise InputError(
            f"{own} must draw random numbers in layers of torch.nn.Dropout only, for {ranks.size} processes, "
            "but something draws others; use one process."
        )
    if config.group_size >= config.batch_size:
        _require_mean(config, model, ranks)


def _require_mean(config: TrainConfig, model: nn.Module, ranks: Ranks) -> None:
    """Refuses a batch of one group whose objective is not the mean of its examples'."""
    cause, remedy = _of_whole_batch(config, model)
    if cause:
        help_ = f"m of at most {config.batch_size // ranks.size}, " if has_groups(config) else ""
        raise InputError(
            f"{cause} must see the whole batch, which {ranks.size} processes share: give {help_}"
            f"{remedy}or use one process."
        )
    if config.sam_use_prev_batch and config.batch_size % ranks.size:
        raise InputError(
            f"batch_size must be a multiple of the {ranks.size} processes with sam_use_prev_batch and one "
            f"group, got {config.batch_size}; or give m of at most {config.batch_size // ranks.size}."
        )


def _of_whole_batch(config: TrainConfig, model: nn.Module) -> tuple[str, str]:
    """What needs the examples of a batch together, and what helps beside smaller groups."""
    if not config.freeze_bn_stats:
        for name, layer in model.named_modules():
            if isinstance(layer, _BatchNorm):
                with_groups = (
                    "" if config.has_own_model else "a model with group normalization (resnet18_gn), "
                )
                return f"batch normalization (layer {name})", f"{with_groups}freeze_bn_stats, "
    if config.has_own_loss:
        return f"loss {config.loss}", ""
    if config.loss == "smallest_k_ce":
        return "loss smallest_k_ce", ""
    for name in ("weight_grad_reg_lambda", "input_grad_reg_lambda", "jac_reg_lambda"):
        if getattr(config, name) > 0:
            return name, ""
    return "", ""
