"""Options: defaults, ranges, choices, combinations."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
import torch

from lowland.deep import TrainConfig
from lowland.errors import InputError

# As in the original, but for the data set, the model and the width, of which ours has defaults of its own.
DEFAULTS: dict[str, Any] = {
    "dataset": "digits",
    "model": "resnet_tiny_gn",
    "model_width": None,
    "batch_size": 128,
    "epochs": 100,
    "lr_max": 0.1,
    "lr_schedule": "piecewise",
    "sgd_p_label_noise": 0,
    "ln_schedule": "constant",
    "p_label_noise": 0,
    "noise_type": "sym",
    "frac_train": 1,
    "sam_rho": 0,
    "sam_step_size_mult": 1,
    "sam_iters": 1,
    "sam_lr_mult": 0,
    "sam_epoch_frac_start": 0,
    "sam_epoch_frac_end": 1,
    "sam_no_grad_norm": False,
    "sam_use_prev_batch": False,
    "only_sam_step_size": False,
    "freeze_bn_stats": False,
    "swa_tau": 0.999,
    "add_weight_perturb_scale": 0,
    "mul_weight_perturb_scale": 0,
    "weight_perturb_distr": "gauss",
    "grad_gauss_std": 0,
    "l1_reg": 0,
    "l2_reg": 0,
    "weight_grad_reg_lambda": 0,
    "input_grad_reg_lambda": 0,
    "jac_reg_lambda": 0,
    "loss": "ce",
    "n_rm_pts": 0,
    "epoch_rm_noise": -1,
    "rm_criterion": "loss",
    "activation": "relu",
    "droprate": 0,
    "scale_init": 0,
    "n_layers": 1,
    "no_data_augm": False,
    "attack": "none",
    "at_norm": "linf",
    "eps": 0,
    "attack_iters": 10,
    "batch_size_eval": 512,
    "n_final_eval": 10000,
    "n_eval_every_k_iter": 512,
    "eval_iter_freq": -1,
    "save_model_each_k_epochs": 0,
    "seed": 0,
    "export_images": False,
}
NOT_A_DEFAULT: dict[str, Any] = {
    "dataset": "cifar10",
    "p_label_noise": 0.6,
    "model": "resnet18",
    "model_width": 12,
    "batch_size": 32,
    "optimizer": "adamw",
    "optimizer_options": ("betas=(0.8, 0.9)", "weight_decay=0.01"),
    "half_prec": "bf16",
    "loss": "ce_offset",
    "loss_offset": -1.5,
    "n_rm_pts": 0.1,
    "epoch_rm_noise": 0.5,
    "sam_rho": 0.1,
    "m": 4,
    "sam_no_grad_norm": True,
    "sam_clip": True,
    "bn_stats": "frozen",
    "attack": "pgd",
    "eps": 8.0,
    "seed": 3,
}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_defaults_are_the_originals(name: str, value: Any) -> None:
    assert getattr(TrainConfig(), name) == value


def test_every_option_is_explained() -> None:
    groups = reversed(TrainConfig.__mro__[1:-1])
    texts = [group.__doc__ or "" for group in groups]
    explained = [name for text in texts for name in re.findall(r"^        (\w+): ", text, re.MULTILINE)]
    assert explained == [field.name for field in dataclasses.fields(TrainConfig)]


def test_a_config_survives_json_and_is_then_equal() -> None:
    for config in (TrainConfig(), TrainConfig(**NOT_A_DEFAULT)):
        again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
        assert again == config
        assert hash(again) == hash(config)
        assert again.optimizer_arguments == config.optimizer_arguments


def test_the_optimizers_options_are_parsed() -> None:
    config = TrainConfig(optimizer_options=("betas=(0.8, 0.9)", "nesterov=True", "x='a=b'"))
    assert config.optimizer_arguments == {"betas": (0.8, 0.9), "nesterov": True, "x": "a=b"}


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^option must be one of .*, got 'sam_roh'; nearest: sam_rho"):
        TrainConfig.from_dict({"sam_roh": 0.1})


def test_an_unknown_value_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"got 'resnet81'; nearest: resnet18"):
        TrainConfig(model="resnet81")


def test_a_group_is_m_or_the_batch_divided_by_acc_steps_or_the_batch() -> None:
    assert TrainConfig(batch_size=96).group_size == 96
    assert TrainConfig(batch_size=96, sam_rho=0.1, m=7).group_size == 7
    assert TrainConfig(batch_size=96, sam_rho=0.1, acc_steps=8).group_size == 12


def test_sam_is_on_with_either_radius() -> None:
    assert not TrainConfig().is_sam
    assert TrainConfig(sam_rho=0.1).is_sam
    assert TrainConfig(sam_lr_mult=0.5).is_sam


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dataset", "cifar"),
        ("noise_type", "symmetric"),
        ("model", "resnet"),
        ("model_type", "first"),
        ("lr_schedule", "piecewise_05epochs"),
        ("half_prec", "fp32"),
        ("loss", "mae"),
        ("ln_schedule", "cosine"),
        ("weight_perturb_distr", "laplace"),
        ("rm_criterion", "margin"),
        ("bn_stats", "second"),
        ("attack", "fgsm"),
        ("at_norm", "l1"),
        ("dataset", None),
    ],
)
def test_what_is_no_choice_is_refused_with_the_choices(name: str, wrong: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be one of .*, got {wrong!r}"):
        TrainConfig(**{name: wrong})


FRACTIONS = (
    "frac_train",
    "p_label_noise",
    "droprate",
    "frac_rm_per_batch",
    "sgd_p_label_noise",
    "n_rm_pts",
    "sam_epoch_frac_start",
    "sam_epoch_frac_end",
    "swa_tau",
)
NON_NEGATIVE = (
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
    "seed",
)
POSITIVE = (
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
WHOLE = (
    "model_width",
    "n_layers",
    "batch_size",
    "epochs",
    "m",
    "acc_steps",
    "sam_iters",
    "attack_iters",
    "batch_size_eval",
    "n_final_eval",
    "n_eval_every_k_iter",
    "eval_iter_freq",
    "save_model_each_k_epochs",
    "seed",
)
NO_NUMBERS = (math.nan, math.inf, "1", True)
OUT_OF_RANGE = [
    *((name, wrong) for name in FRACTIONS for wrong in (-0.1, 1.1, None, *NO_NUMBERS)),
    *((name, wrong) for name in NON_NEGATIVE for wrong in (-1, None, *NO_NUMBERS)),
    *((name, wrong) for name in POSITIVE for wrong in (0, -1, *NO_NUMBERS)),
    *(("epoch_rm_noise", wrong) for wrong in (-0.5, -2, 1.5, *NO_NUMBERS)),
    *(("eval_iter_freq", wrong) for wrong in (0, -2, *NO_NUMBERS)),
    *(("loss_offset", wrong) for wrong in NO_NUMBERS),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("name", "wrong"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_in_a_sentence_that_names_it(name: str, wrong: Any) -> None:
    needed = {"loss_offset": {"loss": "ce_offset"}}.get(name, {})
    with pytest.raises(InputError, match=rf"^{name} must be .*, got '?{re.escape(str(wrong))}'?\.$"):
        TrainConfig(**needed, **{name: wrong})


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", WHOLE)
def test_a_number_of_things_is_whole(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be .*, got 12\.5"):
        TrainConfig(**{name: 12.5})


SWITCHES = [field.name for field in dataclasses.fields(TrainConfig) if field.default is False]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_or_off_and_no_word(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be "):
        TrainConfig.from_dict({"sam_rho": 0.1, "sam_no_grad_norm": True, name: "no"})


def test_the_ends_of_the_ranges_are_allowed() -> None:
    ends = {
        name: end for name in FRACTIONS for end in (0, 1) if name not in {"frac_rm_per_batch", "n_rm_pts"}
    }
    TrainConfig(**ends, sam_rho=0.1)
    TrainConfig(eval_iter_freq=1, epochs=1, batch_size=1, m=1)
    TrainConfig(batch_size=8, m=8)
    TrainConfig(sam_rho=0.1, sam_epoch_frac_start=0.5, sam_epoch_frac_end=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 4, "acc_steps": 4}, "either m or acc_steps may be given, got m=4 and acc_steps=4."),
        ({"m": 129}, "m must be at most the batch size, 128, got 129."),
        ({"acc_steps": 3}, "acc_steps must divide the batch size, 128, got 3."),
        ({"acc_steps": 256}, "acc_steps must divide the batch size, 128, got 256."),
        (
            {"sam_rho": 0.1, "sam_lr_mult": 1.0},
            "either sam_rho or sam_lr_mult may be given, got sam_rho=0.1 and sam_lr_mult=1.0.",
        ),
        (
            {"sam_rho": 0.1, "sam_epoch_frac_start": 0.6, "sam_epoch_frac_end": 0.5},
            "sam_epoch_frac_start must be at most sam_epoch_frac_end, 0.5, got 0.6.",
        ),
        ({"sam_rho": 0.1, "sam_clip": True}, "sam_clip needs sam_no_grad_norm, "),
        ({"sam_no_grad_norm": True}, "sam_no_grad_norm needs sam_rho or sam_lr_mult, "),
        ({"sam_use_prev_batch": True}, "sam_use_prev_batch needs sam_rho or sam_lr_mult, "),
        ({"only_sam_step_size": True}, "only_sam_step_size needs sam_rho or sam_lr_mult, "),
        ({"loss_offset": 1.0}, "loss_offset needs loss ce_offset, "),
        ({"frac_rm_per_batch": 0.1}, "frac_rm_per_batch needs loss smallest_k_ce, "),
        ({"n_rm_pts": 0.1}, "n_rm_pts needs epoch_rm_noise, "),
        ({"epoch_rm_noise": 0.5}, "epoch_rm_noise needs n_rm_pts, "),
        ({"eps": 1.0}, "eps needs attack, "),
        ({"attack": "pgd"}, "attack needs eps, "),
        ({"ln_schedule": "piecewise_3_9"}, "ln_schedule needs sgd_p_label_noise, "),
    ],
)
def test_options_that_contradict_or_need_each_other_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        TrainConfig(**options)


def test_a_removal_after_the_last_epoch_is_refused_since_it_would_do_nothing() -> None:
    with pytest.raises(InputError, match=r"^epoch_rm_noise must be "):
        TrainConfig(n_rm_pts=0.1, epoch_rm_noise=1.0)


def test_a_type_that_is_not_asked_for_is_not_in_the_name_of_a_run() -> None:
    assert "dtype" not in TrainConfig().to_dict()
    assert TrainConfig(dtype="float64").to_dict()["dtype"] == "float64"
    assert TrainConfig.from_dict({"dtype": "float64"}).torch_dtype == torch.float64


def test_float64_is_not_computed_in_half_precision() -> None:
    with pytest.raises(InputError, match=r"^half_prec must be no with dtype float64, got bf16\.$"):
        TrainConfig(dtype="float64", half_prec="bf16")
