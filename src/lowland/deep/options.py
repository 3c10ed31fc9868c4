"""The options of a training run, in groups, with their defaults and meanings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
LOSSES = ("ce", "ce_offset", "gce", "smallest_k_ce", "mse")
"""The losses that have a name; :attr:`LossOptions.loss` says what they are."""


OF_OWN_DATA = ("input_column", "target_column", "image_size", "channels")
"""How data of one's own are read."""


@dataclass(frozen=True)
class OwnDataOptions:
    """Data of your own.

    Attributes:
        data: Your own data in place of a dataset: an image folder (a directory per class, perhaps below
            train, val and test), Parquet files (a path, or hf://owner/name@revision on the Hugging Face Hub),
            an .npz or .safetensors file with x and y (and x_val, x_test, mask), or package.module:function.
        input_column: Column of the inputs in Parquet files that have several; by default found by its type.
        target_column: Column of the targets there.
        image_size: Resize images so that the shorter side has so many pixels, and cut out the square in the
            middle; by default they must be of one size, which they keep.
        channels: Convert images to 1 (gray), 3 (colours) or 4 (colours and opacity) channels; by default they
            keep theirs.
    """

    data: str | None = None
    input_column: str | None = None
    target_column: str | None = None
    image_size: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class DataOptions(OwnDataOptions):
    """Data: what is trained on and measured against.

    Attributes:
        dataset: digits (embedded), mnist, mnist_binary (1 against 7), svhn, cifar10, cifar10_horse_car,
            cifar10_dog_cat, cifar10c, cifar100, gaussians_binary or uniform_noise.
        frac_train: Share of the training set used, after the 10 % validation split.
        p_label_noise: Share of the training and validation labels that is flipped, once.
        noise_type: sym flips to any other class, asym to the class that looks alike.
        no_data_augm: Train on the images of a dataset as they are; linear always does.
        normalize: Inputs with mean 0 and variance 1 in every channel (of features: every feature) over the
            training examples; otherwise pixels are in [0, 1], and other numbers what they are.
        augment: How images of your own are varied: crop (padded by 4 pixels), flip (mirrored); by default
            they are not.
    """

    dataset: str = "digits"
    frac_train: float = 1.0
    p_label_noise: float = 0.0
    noise_type: Literal["sym", "asym"] = "sym"
    no_data_augm: bool = False
    normalize: bool = False
    augment: tuple[Literal["crop", "flip"], ...] = ()


@dataclass(frozen=True)
class ModelOptions:
    """Model: the network, and the weights that it starts from.

    Attributes:
        model: resnet18, resnet18_gn, resnet_tiny, resnet_tiny_gn, resnet34, resnet34preact, resnet34_gn,
            wrn28, vgg16, linear, lenet, cnn or fc; or your own, package.module:function.
        model_arg: Arguments of your own model's function as name=value, e.g. width=64 model_name=resnet18.
        model_width: Channels of the first stage (10 for WRN-28-10); the model's own default if not given.
        activation: relu, or softplusA for softplus with beta A (the original's resnet34 and wrn28 ignore it,
            and droprate too; ours do not).
        droprate: Dropout rate between a block's convolutions, and after the hidden layers of cnn and fc.
        scale_init: Initial l2 norm of the weights of linear; 0 keeps the default.
        n_layers: Number of layers of cnn and fc.
        model_path: Weights to start from: a run directory, a safetensors file or an original .pth.
        model_type: Which of the four in a run directory or a .pth.
        freeze_bn_stats: Train with batch norm in evaluation mode.
    """

    model: str = "resnet_tiny_gn"
    model_arg: tuple[str, ...] = ()
    model_width: int | None = None
    activation: str = "relu"
    droprate: float = 0.0
    scale_init: float = 0.0
    n_layers: int = 1
    model_path: str | None = None
    model_type: Literal["last", "best", "swa_last", "swa_best"] = "last"
    freeze_bn_stats: bool = False


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer: how weights follow gradients, and for how long.

    Attributes:
        batch_size: Examples per step; an incomplete last batch is dropped.
        epochs: Number of epochs.
        optimizer: sgd (momentum 0.9), or any other name in torch.optim.
        optimizer_options: The optimizer's own options as name=value, e.g. momentum=0.95 nesterov=True.
        lr_max: Peak learning rate.
        lr_schedule: Learning rate over time.
        half_prec: Autocast to this type.
        dtype: Type of the weights and of what the network computes with.
    """

    batch_size: int = 128
    epochs: int = 100
    optimizer: str = "sgd"
    optimizer_options: tuple[str, ...] = ()
    lr_max: float = 0.1
    lr_schedule: LearningRateSchedule = "piecewise"
    half_prec: Literal["no", "bf16", "fp16"] = "no"
    dtype: Literal["float32", "float64"] = "float32"


@dataclass(frozen=True)
class SAMOptions:
    """SAM: where the gradient is taken.

    Attributes:
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
    """

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


@dataclass(frozen=True)
class LossOptions:
    """Loss and regularization: what is minimized.

    Attributes:
        loss: ce; ce_offset (two classes); gce, generalized cross-entropy; smallest_k_ce, trimmed; mse, for
            targets that are numbers; or your own, package.module:function of outputs and targets: the mean
            over the examples that it is given, or one value for each.
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
    """

    loss: str = "ce"
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


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation: what is measured along the way.

    Attributes:
        swa_tau: The averaged weights keep this share of themselves at each step.
        attack: Also measure the error under this attack.
        at_norm: Norm of the attack.
        eps: Radius of the attack; in units of 1/255 for linf.
        attack_iters: Number of steps of the attack.
        batch_size_eval: Examples per batch in evaluation.
        n_final_eval: Examples at most in any evaluation.
        n_eval_every_k_iter: Examples at most in the cheap evaluations between the full ones.
        eval_iter_freq: Full evaluation every so many steps; -1 is every 5 epochs and at the end.
    """

    swa_tau: float = 0.999
    attack: Literal["none", "pgd"] = "none"
    at_norm: Literal["linf", "l2"] = "linf"
    eps: float = 0.0
    attack_iters: int = 10
    batch_size_eval: int = 512
    n_final_eval: int = 10_000
    n_eval_every_k_iter: int = 512
    eval_iter_freq: int = -1


@dataclass(frozen=True)
class RunOptions:
    """Run: the seed, and what is kept.

    Attributes:
        seed: Seed of everything random.
        save_model_each_k_epochs: Also keep the weights every so many epochs; 0 does not.
        export_images: Write a picture of the first training images into the run.
    """

    seed: int = 0
    save_model_each_k_epochs: int = 0
    export_images: bool = False
