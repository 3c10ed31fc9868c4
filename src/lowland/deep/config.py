"""What a training run is: every option, its default and its meaning."""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lowland.deep.data import DATASETS
from lowland.deep.models import MODEL_NAMES
from lowland.deep.needs import climbs_ever, unmet
from lowland.errors import InputError, one_of, require_at_most
from lowland.runs import conform
from lowland.sam import BatchNormStats

LearningRateSchedule = Literal[
    "piecewise",
    "piecewise_02epochs",
    "piecewise_03epochs",
    "piecewise_04epochs",
    "cyclic",
    "cosine",
    "constant",
]
LabelNoiseSchedule = Literal[
    "constant",
    "inverted_cosine",
    "piecewise_10_100",
    "piecewise_3_9",
    "piecewise_3_inf",
    "piecewise_2_3_3",
    "piecewise_5_3_3",
    "piecewise_8_3_3",
]


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Names and defaults follow the original code of the paper where it has the option.

    Attributes:
        dataset: digits (embedded), mnist, mnist_binary (1 against 7), svhn, cifar10, cifar10_horse_car,
            cifar10_dog_cat, cifar10c, cifar100, gaussians_binary or uniform_noise.
        frac_train: Share of the training set used, after the 10 % validation split.
        p_label_noise: Share of the training and validation labels that is flipped, once.
        noise_type: sym flips to any other class, asym to the class that looks alike.
        no_data_augm: Train on the images as they are; linear always does.
        model: resnet18, resnet18_gn, resnet_tiny, resnet_tiny_gn, resnet34, resnet34preact, resnet34_gn,
            wrn28, vgg16, linear, lenet, cnn or fc.
        model_width: Channels of the first stage (10 for WRN-28-10); the model's own default if not given.
        activation: relu, or softplusA for softplus with beta A (the original's resnet34 and wrn28 ignore it,
            and droprate too; ours do not).
        droprate: Dropout rate between a block's convolutions, and after the hidden layers of cnn and fc.
        scale_init: Initial l2 norm of the weights of linear; 0 keeps the default.
        n_layers: Number of layers of cnn and fc.
        model_path: Weights to start from: a run directory, a safetensors file or an original .pth.
        model_type: Which of the four in a run directory or a .pth.
        batch_size: Examples per step; an incomplete last batch is dropped.
        epochs: Number of epochs.
        optimizer: sgd (momentum 0.9), or any other name in torch.optim.
        optimizer_options: The optimizer's own options as name=value, e.g. momentum=0.95 nesterov=True.
        lr_max: Peak learning rate.
        lr_schedule: Learning rate over time.
        half_prec: Autocast to this type.
        loss: ce; ce_offset (two classes); gce, generalized cross-entropy; smallest_k_ce, trimmed.
        loss_offset: The offset in ce_offset.
        gce_q: The exponent in gce.
        frac_rm_per_batch: Share of the largest losses that smallest_k_ce drops.
        l1_reg: Weight of the l1 norm of all parameters, in the objective.
        l2_reg: Weight of half the squared l2 norm of all parameters, in the objective and so in the climb.
        weight_grad_reg_lambda: Weight of the squared norm of the loss's gradient by the weights.
        input_grad_reg_lambda: Weight of the squared norm of the loss's gradient by the inputs.
        jac_reg_lambda: Weight of the squared norm of the mean logits' Jacobian by the inputs.
        sgd_p_label_noise: Probability that a label is drawn uniformly anew, at each step.
        ln_schedule: Factor on that probability over time.
        add_weight_perturb_scale: Scale of random noise added to the weights before each gradient.
        mul_weight_perturb_scale: Scale of random noise that multiplies them.
        weight_perturb_distr: Distribution of that noise: standard normal, or uniform on (-1/2, 1/2).
        grad_gauss_std: Standard deviation of Gaussian noise added to every gradient.
        n_rm_pts: Share of the training points to drop, those with the highest rm_criterion.
        epoch_rm_noise: When to drop them, as a share of the epochs.
        rm_criterion: What the points are ranked by.
        sam_rho: Radius of the perturbation; 0 is plain training (ERM).
        m: Examples that share one perturbation; the whole batch if not given.
        acc_steps: The original's way to say m: m = batch_size / acc_steps.
        engine: Whether the groups of m are run one after the other (loop), all at once (batched), or however
            is faster (auto).
        sam_iters: Number of ascent steps.
        sam_step_size_mult: Size of an ascent step in units of the radius.
        sam_lr_mult: Instead of sam_rho: the radius is this times the current learning rate.
        sam_epoch_frac_start: SAM from this share of the epochs on.
        sam_epoch_frac_end: SAM up to this share of the epochs.
        sam_no_grad_norm: Unnormalized SAM: the perturbation is the radius times the gradient.
        sam_clip: With sam_no_grad_norm: clip the perturbation to the radius, as the original does.
        sam_use_prev_batch: Climb on the previous batch (MaxSum SAM).
        only_sam_step_size: Keep the plain gradient's direction, take SAM's gradient norm.
        bn_stats: Passes that move batch norm's running statistics: the unperturbed one, both, or none.
        freeze_bn_stats: Train with batch norm in evaluation mode.
        swa_tau: The averaged weights keep this share of themselves at each step.
        attack: Also measure the error under this attack.
        at_norm: Norm of the attack.
        eps: Radius of the attack; in units of 1/255 for linf.
        attack_iters: Number of steps of the attack.
        batch_size_eval: Examples per batch in evaluation.
        n_final_eval: Examples at most in any evaluation.
        n_eval_every_k_iter: Examples at most in the cheap evaluations between the full ones.
        eval_iter_freq: Full evaluation every so many steps; -1 is every 5 epochs and at the end.
        save_model_each_k_epochs: Also keep the weights every so many epochs; 0 does not.
        export_images: Write a picture of the first training images into the run.
        seed: Seed of everything random.
    """

    dataset: str = "digits"
    frac_train: float = 1.0
    p_label_noise: float = 0.0
    noise_type: Literal["sym", "asym"] = "sym"
    no_data_augm: bool = False
    model: str = "resnet_tiny_gn"
    model_width: int | None = None
    activation: str = "relu"
    droprate: float = 0.0
    scale_init: float = 0.0
    n_layers: int = 1
    model_path: str | None = None
    model_type: Literal["last", "best", "swa_last", "swa_best"] = "last"
    batch_size: int = 128
    epochs: int = 100
    optimizer: str = "sgd"
    optimizer_options: tuple[str, ...] = ()
    lr_max: float = 0.1
    lr_schedule: LearningRateSchedule = "piecewise"
    half_prec: Literal["no", "bf16", "fp16"] = "no"
    loss: Literal["ce", "ce_offset", "gce", "smallest_k_ce"] = "ce"
    loss_offset: float = 0.0
    gce_q: float = 0.7
    frac_rm_per_batch: float = 0.0
    l1_reg: float = 0.0
    l2_reg: float = 0.0
    weight_grad_reg_lambda: float = 0.0
    input_grad_reg_lambda: float = 0.0
    jac_reg_lambda: float = 0.0
    sgd_p_label_noise: float = 0.0
    ln_schedule: LabelNoiseSchedule = "constant"
    add_weight_perturb_scale: float = 0.0
    mul_weight_perturb_scale: float = 0.0
    weight_perturb_distr: Literal["gauss", "uniform"] = "gauss"
    grad_gauss_std: float = 0.0
    n_rm_pts: float = 0.0
    epoch_rm_noise: float = -1.0
    rm_criterion: Literal["loss", "entropy"] = "loss"
    sam_rho: float = 0.0
    m: int | None = None
    acc_steps: int | None = None
    engine: Literal["auto", "loop", "batched"] = "auto"
    sam_iters: int = 1
    sam_step_size_mult: float = 1.0
    sam_lr_mult: float = 0.0
    sam_epoch_frac_start: float = 0.0
    sam_epoch_frac_end: float = 1.0
    sam_no_grad_norm: bool = False
    sam_clip: bool = False
    sam_use_prev_batch: bool = False
    only_sam_step_size: bool = False
    bn_stats: BatchNormStats = "first"
    freeze_bn_stats: bool = False
    swa_tau: float = 0.999
    attack: Literal["none", "pgd"] = "none"
    at_norm: Literal["linf", "l2"] = "linf"
    eps: float = 0.0
    attack_iters: int = 10
    batch_size_eval: int = 512
    n_final_eval: int = 10_000
    n_eval_every_k_iter: int = 512
    eval_iter_freq: int = -1
    save_model_each_k_epochs: int = 0
    export_images: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises :class:`~lowland.errors.InputError` for a value that is out of range or useless."""
        self._check_values()
        self._check_read()

    @property
    def group_size(self) -> int:
        """Examples that share one perturbation, m."""
        return self.m or self.batch_size // (self.acc_steps or 1)

    @property
    def augments(self) -> bool:
        """Whether training images are varied; those of linear are not, as in the original."""
        return not self.no_data_augm and self.model != "linear"

    @property
    def is_sam(self) -> bool:
        """Whether any part of the training climbs."""
        return self.sam_rho > 0 or self.sam_lr_mult > 0

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """The optimizer's own options, parsed."""
        return dict(_parse_option(option) for option in self.optimizer_options)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**dataclasses.asdict(self), "optimizer_options": list(self.optimizer_options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From the plain JSON values of a run that is there.

        What nothing reads is let be: it did nothing in that run, which stays what it is.

        Raises:
            InputError: If a name is unknown or a value out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            one_of("option", name, names)
        options = conform(values.get("optimizer_options", []), list[str], "optimizer_options")
        config = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(config, field.name, values.get(field.name, field.default))
        object.__setattr__(config, "optimizer_options", tuple(options))
        config._check_values()
        return config

    def _check_values(self) -> None:
        self._check_types()
        self._check_choices()
        self._check_ranges()
        self._check_combinations()

    def _check_types(self) -> None:
        for name, hint in _hints().items():
            if get_origin(hint) is not Literal and name not in ("dataset", "model"):
                conform(getattr(self, name), hint, name)

    def _check_choices(self) -> None:
        one_of("dataset", self.dataset, DATASETS)
        one_of("model", self.model, MODEL_NAMES)
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
_AT_MOST = {"model_width": 65_536, "n_layers": 1_000}
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


def _parse_option(option: str) -> tuple[str, Any]:
    name, equals, text = option.partition("=")
    if not (equals and name.isidentifier()):
        raise InputError(f"optimizer_options must be name=value, got {option!r}.")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise InputError(f"the value of optimizer option {name} must be a literal, got {text!r}.") from None
