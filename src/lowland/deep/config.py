"""What a training run is: its options, checked."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from lowland.deep.data import DATASETS, Augmentation, augmentation
from lowland.deep.data.name import name_of_data
from lowland.deep.functions import arguments_of, is_function
from lowland.deep.models import MODEL_NAMES
from lowland.deep.needs import climbs_ever, unmet
from lowland.deep.options import (
    LOSSES,
    DataOptions,
    EvaluationOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    SAMOptions,
)
from lowland.errors import InputError, one_of, require_at_most
from lowland.runs import conform


@dataclass(frozen=True)
class TrainConfig(
    RunOptions, EvaluationOptions, LossOptions, OptimizerOptions, SAMOptions, ModelOptions, DataOptions
):
    """One training run. Names and defaults follow the original code of the paper where it has the option.

    The options and what they mean are in :mod:`lowland.deep.options`.

    Raises:
        InputError: If a value is out of range, or nothing would read it.

    Example:
        >>> from lowland.deep import TrainConfig
        >>> config = TrainConfig(model="fc", model_width=64, sam_rho=0.1, m=16)
        >>> config.is_sam, config.group_size, config.data_name
        (True, 16, 'digits')
        >>> TrainConfig(epochs=0)
        Traceback (most recent call last):
        ...
        lowland.errors.InputError: epochs must be positive, got 0.
    """

    def __post_init__(self) -> None:
        """Raises :class:`~lowland.errors.InputError` for a value that is out of range or useless."""
        self._check_values()
        self._check_read()

    @property
    def group_size(self) -> int:
        """Examples that share one perturbation, m."""
        return self.m or self.batch_size // (self.acc_steps or 1)

    @property
    def augmentation(self) -> Augmentation | None:
        """How training images are varied, if they are; those of linear are not, as in the original."""
        if self.data is not None:
            own = Augmentation(crop="crop" in self.augment, flip="flip" in self.augment)
            return own if self.augment else None
        return None if self.no_data_augm or self.model == "linear" else augmentation(self.dataset)

    @property
    def has_own_model(self) -> bool:
        """Whether the network is the user's own."""
        return is_function(self.model)

    @property
    def has_own_loss(self) -> bool:
        """Whether the loss is the user's own."""
        return is_function(self.loss)

    @property
    def is_own(self) -> bool:
        """Whether data, network or loss are the user's own, so that they may not go together."""
        return self.data is not None or self.has_own_model or self.has_own_loss

    @property
    def data_name(self) -> str:
        """What the data are called: the name of the set, or the last part of where the user's own are."""
        return self.dataset if self.data is None else name_of_data(self.data)

    @property
    def is_sam(self) -> bool:
        """Whether any part of the training climbs."""
        return self.sam_rho > 0 or self.sam_lr_mult > 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the weights."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """The optimizer's own options, parsed."""
        found = arguments_of("optimizer_options", self.optimizer_options)
        for (name, value), word in zip(found.items(), self.optimizer_options, strict=True):
            if value == word.partition("=")[2]:
                raise InputError(f"the value of optimizer option {name} must be a literal, got {value!r}.")
        return found

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of the function that makes the user's own network, parsed."""
        return arguments_of("model_arg", self.model_arg)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values.

        Options that came after the first version are there only where they are given, so that a run keeps
        its name, and what it is compared with.
        """
        values = dataclasses.asdict(self)
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        return {n: v for n, v in plain.items() if n not in _LATER or values[n] != _defaults()[n]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The config that plain JSON values of a run that is there stand for.

        What nothing reads is let be: it did nothing in that run, which stays what it is.

        Args:
            values: The options, by name; what is missing is the default.

        Raises:
            InputError: If a name is unknown or a value out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            one_of("option", name, names)
        config = object.__new__(cls)
        for field in dataclasses.fields(cls):
            value = values.get(field.name, field.default)
            if field.name in values and isinstance(field.default, tuple):
                value = tuple(conform(value, list[str], field.name))
            object.__setattr__(config, field.name, value)
        config._check_values()
        return config

    def _check_values(self) -> None:
        self._check_types()
        self._check_choices()
        self._check_ranges()
        self._check_combinations()

    def _check_types(self) -> None:
        for name, hint in _hints().items():
            if get_origin(hint) is not Literal and name != "dataset":
                conform(getattr(self, name), hint, name)

    def _check_choices(self) -> None:
        one_of("dataset", self.dataset, DATASETS)
        for name, names in (("model", MODEL_NAMES), ("loss", LOSSES)):
            if not is_function(getattr(self, name)):
                one_of(name, getattr(self, name), names, more="your own as package.module:function")
        for name, hint in _hints().items():
            if get_origin(hint) is Literal:
                one_of(name, getattr(self, name), get_args(hint))

    def _check_ranges(self) -> None:
        for name in _FRACTIONS:
            _require(name, getattr(self, name), "between 0 and 1", lambda v: 0 <= v <= 1)
        for name in _NON_NEGATIVE:
            _require(name, getattr(self, name), "non-negative", lambda v: v >= 0)
        require_at_most(self, _AT_MOST)
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), "positive", lambda v: v > 0)
        _require("epoch_rm_noise", self.epoch_rm_noise, "-1 or in [0, 1)", lambda v: v == -1 or 0 <= v < 1)
        _require("eval_iter_freq", self.eval_iter_freq, "-1 or positive", lambda v: v == -1 or v > 0)
        _require("seed", self.seed, "non-negative", lambda v: v >= 0)

    def _check_combinations(self) -> None:
        arguments_of("model_arg", self.model_arg)
        if self.m is not None and self.acc_steps is not None:
            raise InputError(
                f"either m or acc_steps may be given, got m={self.m} and acc_steps={self.acc_steps}."
            )
        if self.m is not None and self.m > self.batch_size:
            raise InputError(f"m must be at most the batch size, {self.batch_size}, got {self.m}.")
        if self.acc_steps is not None and self.batch_size % self.acc_steps:
            raise InputError(
                f"acc_steps must divide the batch size, {self.batch_size}, got {self.acc_steps}."
            )
        if self.sam_rho > 0 and self.sam_lr_mult > 0:
            raise InputError(
                "either sam_rho or sam_lr_mult may be given, "
                f"got sam_rho={self.sam_rho} and sam_lr_mult={self.sam_lr_mult}."
            )
        if self.sam_epoch_frac_start > self.sam_epoch_frac_end:
            raise InputError(
                f"sam_epoch_frac_start must be at most sam_epoch_frac_end, {self.sam_epoch_frac_end}, "
                f"got {self.sam_epoch_frac_start}."
            )
        if self.dtype != "float32" and self.half_prec != "no":
            raise InputError(f"half_prec must be no with dtype {self.dtype}, got {self.half_prec}.")
        if self.channels not in (None, 1, 3, 4):
            raise InputError(f"channels must be 1, 3 or 4, got {self.channels}.")
        if len(set(self.augment)) < len(self.augment):
            raise InputError(f"augment must name each way once, got {' '.join(self.augment)}.")
        if self.attack != "none" and self.dataset == "gaussians_binary":
            raise InputError("attack needs images with pixels in [0, 1], got dataset gaussians_binary.")

    def _check_read(self) -> None:
        """Refuses what is given and read by nothing, so that a run is what its options say."""
        for name, needed in unmet(self):
            raise InputError(f"{name} needs {needed}, without which it would do nothing.")
        if self.is_sam and not climbs_ever(self):
            raise InputError(
                "sam_epoch_frac_start and sam_epoch_frac_end must have the end of an epoch between them, "
                f"got {self.sam_epoch_frac_start} and {self.sam_epoch_frac_end} of {self.epochs} epochs."
            )


@functools.cache
def _hints() -> dict[str, Any]:
    """The types of the options: they are strings, which take longer to evaluate than all else in a check."""
    return get_type_hints(TrainConfig)


@functools.cache
def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(TrainConfig)}


_FRACTIONS = (
    "droprate",
    "frac_train",
    "p_label_noise",
    "frac_rm_per_batch",
    "sgd_p_label_noise",
    "n_rm_pts",
    "sam_epoch_frac_start",
    "sam_epoch_frac_end",
    "swa_tau",
)
_LATER = (
    *("data", "input_column", "target_column", "image_size", "channels", "normalize", "augment"),
    *("model_arg", "dtype"),
)
_AT_MOST = {"model_width": 65_536, "n_layers": 1_000, "image_size": 4_096}
"""Beyond these a network takes hours to build before it is found not to fit anywhere."""
_NON_NEGATIVE = (
    "scale_init",
    "lr_max",
    "l1_reg",
    "l2_reg",
    "weight_grad_reg_lambda",
    "input_grad_reg_lambda",
    "jac_reg_lambda",
    "add_weight_perturb_scale",
    "mul_weight_perturb_scale",
    "grad_gauss_std",
    "sam_rho",
    "sam_lr_mult",
    "eps",
    "save_model_each_k_epochs",
)
_POSITIVE = (
    "image_size",
    "model_width",
    "n_layers",
    "batch_size",
    "epochs",
    "gce_q",
    "m",
    "acc_steps",
    "sam_iters",
    "sam_step_size_mult",
    "attack_iters",
    "batch_size_eval",
    "n_final_eval",
    "n_eval_every_k_iter",
)


def _require(name: str, value: Any, wanted: str, holds: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and holds(value)):
        raise InputError(f"{name} must be {wanted}, got {value}.")
