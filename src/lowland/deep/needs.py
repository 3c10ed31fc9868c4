"""Options that only some runs read, and what makes a run one of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lowland.deep.models import NORMALIZED_BY_BATCH

if TYPE_CHECKING:
    from lowland.deep.config import TrainConfig


@dataclass(frozen=True)
class Need:
    """What options need, without which nothing would read them.

    Attributes:
        names: The options.
        needed: What they need, in the user's words.
        there: Whether a run has it.
        given: Whether one is asked for; by default, whether it differs from its default.
    """

    names: tuple[str, ...]
    needed: str
    there: Callable[[TrainConfig], bool]
    given: Callable[[TrainConfig, str], bool] | None = None


_RADIUS = "sam_rho or sam_lr_mult"
_OF_SAM = (
    "engine",
    "sam_iters",
    "sam_step_size_mult",
    "sam_epoch_frac_start",
    "sam_epoch_frac_end",
    "sam_no_grad_norm",
    "sam_use_prev_batch",
    "only_sam_step_size",
)
_NORMALIZED = f"a model with batch normalization, your own or one of {', '.join(NORMALIZED_BY_BATCH)}"


def _has_batch_norm(config: TrainConfig) -> bool:
    """Whether the model may have; of one's own it is known when it is built."""
    return config.has_own_model or config.model in NORMALIZED_BY_BATCH


def _cuts(config: TrainConfig, name: str) -> bool:
    """Whether the option asks for groups: one group, as in the original's ``acc_steps=1``, is no request."""
    return getattr(config, name) is not None and config.group_size < config.batch_size


_GROUPS = (
    f"{_RADIUS}, or what sees the examples of a group together (batch normalization of lowland's models, "
    "loss smallest_k_ce, "
    "weight_grad_reg_lambda, input_grad_reg_lambda, jac_reg_lambda)"
)


def has_groups(config: TrainConfig) -> bool:
    """Whether the examples that share a pass make a difference; they do in plain training too."""
    return (
        config.is_sam
        or (config.model in NORMALIZED_BY_BATCH and not config.freeze_bn_stats)
        or config.loss == "smallest_k_ce"
        or max(config.weight_grad_reg_lambda, config.input_grad_reg_lambda, config.jac_reg_lambda) > 0
    )


_OF_OURS = ("model_width", "n_layers", "activation", "droprate", "scale_init")
_OF_OWN_DATA = ("input_column", "target_column", "image_size", "channels", "augment")

NEEDS = (
    Need(("dataset",), "data to be left out", lambda c: c.data is None),
    Need(_OF_OWN_DATA, "data of your own", lambda c: c.data is not None),
    Need(("no_data_augm",), "data to be left out", lambda c: c.data is None),
    Need(
        ("noise_type",),
        "data to be left out, of whose classes nobody knows which look alike",
        lambda c: c.data is None,
    ),
    Need(("model_arg",), "a model of your own, package.module:function", lambda c: c.has_own_model),
    Need(_OF_OURS, "one of lowland's models, not your own", lambda c: not c.has_own_model),
    Need(("attack",), "normalize to be off, since pixels must lie in [0, 1]", lambda c: not c.normalize),
    Need(("sam_clip",), "sam_no_grad_norm", lambda c: c.sam_no_grad_norm),
    Need(("m", "acc_steps"), _GROUPS, has_groups, _cuts),
    Need(_OF_SAM, _RADIUS, lambda c: c.is_sam),
    Need(("bn_stats", "freeze_bn_stats"), _NORMALIZED, _has_batch_norm),
    Need(("bn_stats",), "freeze_bn_stats to be off", lambda c: not c.freeze_bn_stats),
    # Frozen statistics stay where they are in plain training too; a second pass is SAM's.
    Need(("bn_stats",), _RADIUS, lambda c: c.is_sam, lambda c, _: c.bn_stats == "both"),
    Need(("loss_offset",), "loss ce_offset", lambda c: c.loss == "ce_offset"),
    Need(("gce_q",), "loss gce", lambda c: c.loss == "gce"),
    Need(("frac_rm_per_batch",), "loss smallest_k_ce", lambda c: c.loss == "smallest_k_ce"),
    Need(("noise_type",), "p_label_noise", lambda c: c.p_label_noise > 0),
    Need(("ln_schedule",), "sgd_p_label_noise", lambda c: c.sgd_p_label_noise > 0),
    Need(
        ("weight_perturb_distr",),
        "add_weight_perturb_scale or mul_weight_perturb_scale",
        lambda c: c.add_weight_perturb_scale > 0 or c.mul_weight_perturb_scale > 0,
    ),
    Need(("rm_criterion", "epoch_rm_noise"), "n_rm_pts", lambda c: c.n_rm_pts > 0),
    Need(("n_rm_pts",), "epoch_rm_noise", lambda c: c.epoch_rm_noise >= 0),
    Need(("model_type",), "model_path", lambda c: c.model_path is not None),
    Need(("scale_init",), "model_path to be left out", lambda c: c.model_path is None),
    Need(("eps", "at_norm", "attack_iters"), "attack", lambda c: c.attack != "none"),
    Need(("attack",), "eps", lambda c: c.eps > 0),
)


def unmet(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Each option that is given and that nothing would read, and what it needs."""
    defaults = {field.name: field.default for field in fields(config)}
    for need in NEEDS:
        for name in need.names:
            given = _differs(config, name, defaults) if need.given is None else need.given(config, name)
            if given and not need.there(config):
                yield name, need.needed


def idle_groups(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Options that say groups, also one alone, where they make no difference, and what they need."""
    if not has_groups(config):
        yield from ((name, _GROUPS) for name in ("m", "acc_steps") if getattr(config, name) is not None)


def _differs(config: TrainConfig, name: str, defaults: dict[str, Any]) -> bool:
    return bool(getattr(config, name) != defaults[name])


def climbs_ever(config: TrainConfig) -> bool:
    """Whether an epoch ends inside the window of SAM, where alone it is on."""
    first = math.floor(config.sam_epoch_frac_start * config.epochs)
    near = range(max(1, first - 1), min(config.epochs, first + 2) + 1)
    return any(
        config.sam_epoch_frac_start <= epoch / config.epochs <= config.sam_epoch_frac_end for epoch in near
    )
