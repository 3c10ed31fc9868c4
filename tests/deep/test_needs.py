"""Every option changes the run or is refused: what nothing reads cannot be given."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lowland.deep import Control, Place, TrainConfig, launch, run_name
from lowland.deep.averaging import has_batch_norm
from lowland.deep.models import DEFAULT_WIDTHS, MODEL_NAMES, NORMALIZED_BY_BATCH, build_model
from lowland.errors import InputError
from lowland.runs import Run

from .belongings import image_column, write_images, write_table

ERM: dict[str, Any] = {
    "frac_train": 0.05,
    "model": "fc",
    "model_width": 4,
    "batch_size": 16,
    "epochs": 2,
    "n_final_eval": 64,
    "n_eval_every_k_iter": 16,
}
SAM = {"sam_rho": 0.2}
BATCH_NORM = {"model": "resnet_tiny", "model_width": 2}
TWO_CLASSES = {"dataset": "gaussians_binary", "loss": "ce_offset"}
REMOVAL = {"n_rm_pts": 0.2, "epoch_rm_noise": 0.5}

START = "start"
"""A run of the same folder."""

OWN_SIZE: dict[str, Any] = {"frac_train": 1.0, "batch_size": 8}
PHOTOS = {"data": "photos", **OWN_SIZE}
TABLE = {"data": "two.parquet", **OWN_SIZE}
OWN_MODEL = {"model": "own_code:net", "model_width": None}

# A value that is not the default, and what the option needs beside it.
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "data": ("photos", OWN_SIZE),
    "input_column": ("b", TABLE | {"input_column": "a"}),
    "target_column": ("z", TABLE | {"input_column": "a"}),
    "image_size": (4, PHOTOS),
    "channels": (1, PHOTOS),
    "dataset": ("uniform_noise", {}),
    "frac_train": (0.06, {}),
    "p_label_noise": (0.5, {}),
    "noise_type": ("asym", {"dataset": "cifar10", "p_label_noise": 0.5}),
    "no_data_augm": (True, {}),
    "normalize": (True, {}),
    "augment": (("flip",), PHOTOS),
    "model": ("cnn", {}),
    "model_arg": (("width=3",), OWN_MODEL),
    "model_width": (5, {}),
    "activation": ("softplus2", {}),
    "droprate": (0.5, {}),
    "scale_init": (3.0, {"model": "linear", "model_width": None}),
    "n_layers": (2, {}),
    "model_path": (START, {}),
    "model_type": ("swa_last", {"model_path": START}),
    "freeze_bn_stats": (True, BATCH_NORM),
    "sam_rho": (0.3, {}),
    "m": (3, SAM),
    "acc_steps": (4, SAM),
    "engine": ("loop", SAM),
    "sam_iters": (3, SAM | {"sam_step_size_mult": 0.4}),
    "sam_step_size_mult": (0.5, SAM),
    "sam_lr_mult": (1.0, {}),
    "sam_epoch_frac_start": (1.0, SAM),
    "sam_epoch_frac_end": (0.5, SAM),
    "sam_no_grad_norm": (True, SAM),
    "sam_clip": (True, SAM | {"sam_no_grad_norm": True, "l2_reg": 5.0}),
    "sam_use_prev_batch": (True, SAM),
    "only_sam_step_size": (True, SAM),
    "bn_stats": ("both", SAM | BATCH_NORM),
    "batch_size": (17, {}),
    "epochs": (3, {}),
    "optimizer": ("adam", {}),
    "optimizer_options": (("momentum=0.5",), {}),
    "lr_max": (0.2, {}),
    "lr_schedule": ("cosine", {}),
    "half_prec": ("bf16", {}),
    "dtype": ("float64", {}),
    "loss": ("gce", {}),
    "loss_offset": (1.0, TWO_CLASSES),
    "gce_q": (0.2, {"loss": "gce"}),
    "frac_rm_per_batch": (0.2, {"loss": "smallest_k_ce"}),
    "l1_reg": (0.1, {}),
    "l2_reg": (0.1, {}),
    "weight_grad_reg_lambda": (0.1, {}),
    "input_grad_reg_lambda": (0.1, {}),
    "jac_reg_lambda": (0.1, {}),
    "sgd_p_label_noise": (0.5, {}),
    "ln_schedule": ("inverted_cosine", {"sgd_p_label_noise": 0.9}),
    "add_weight_perturb_scale": (0.1, {}),
    "mul_weight_perturb_scale": (0.1, {}),
    "weight_perturb_distr": ("uniform", {"add_weight_perturb_scale": 0.1}),
    "grad_gauss_std": (0.1, {}),
    "n_rm_pts": (0.4, REMOVAL),
    "epoch_rm_noise": (0.0, REMOVAL),
    "rm_criterion": ("entropy", REMOVAL),
    "swa_tau": (0.5, {}),
    "attack": ("pgd", {"eps": 16.0}),
    "at_norm": ("l2", {"attack": "pgd", "eps": 1.0}),
    "eps": (64.0, {"attack": "pgd", "eps": 8.0}),
    "attack_iters": (1, {"attack": "pgd", "eps": 64.0}),
    "batch_size_eval": (7, {}),
    "n_final_eval": (32, {}),
    "n_eval_every_k_iter": (8, {}),
    "eval_iter_freq": (1, {}),
    "seed": (1, {}),
    "save_model_each_k_epochs": (1, {}),
    "export_images": (True, {}),
}
NOT_SEEN = {
    "engine": "both engines take the same step",
    "batch_size_eval": "an error does not depend on the parts that it is measured in",
    "no_data_augm": "digits are not augmented, so that what is asked for is done",
    "noise_type": "CIFAR-10 is not there in every test",
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a run leaves, but for its config and its times; each is trained once."""
    folder = tmp_path_factory.mktemp("runs")
    write_images(folder / "photos")
    columns = {"a": image_column(40), "b": image_column(40, seed=1)}
    labels = {"label": np.arange(40) % 3, "z": np.arange(40) % 2}
    write_table(folder / "two.parquet", columns | labels)
    place = Place("cpu", threads=1, directory=folder)
    launch(TrainConfig(**ERM | {"seed": 5}), folder / "start", place, Control())

    @functools.cache
    def left_by(config: TrainConfig) -> dict[str, Any]:
        launch(config, folder / run_name(config), place, Control())
        run = Run.open(folder / run_name(config))
        timeless = [{k: repr(v) for k, v in row.items() if k != "seconds"} for row in run.rows()]
        weights = {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}
        return {"rows": timeless, "pictures": [path.name for path in run.path.glob("*.png")]} | weights

    return lambda options: left_by(TrainConfig(**ERM | options))


def refusal(act: Callable[[], object]) -> str:
    """The sentence that refuses it, if it is refused."""
    try:
        act()
    except InputError as error:
        return str(error)
    return ""


def test_every_option_is_here() -> None:
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in NOT_SEEN])
def test_an_option_changes_the_run_that_has_what_it_needs(name: str, outcome: Any) -> None:
    value, beside = OPTIONS[name]
    without = {} if name in {"n_rm_pts", "attack"} else beside  # each needs another that needs it
    assert outcome(beside | {name: value}) != outcome(without)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", [name for name, (_, beside) in OPTIONS.items() if beside])
def test_alone_it_changes_the_run_or_is_refused_by_name(name: str, outcome: Any) -> None:
    said = refusal(lambda: outcome({name: OPTIONS[name][0]}))
    named = r"\bbatch_size\b" if name == "data" else rf"\b{name}\b"  # which is made for the digits here
    assert re.search(named, said) if said else outcome({name: OPTIONS[name][0]}) != outcome({})


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "beside",
    [
        BATCH_NORM,
        BATCH_NORM | {"bn_stats": "frozen"},
        {"loss": "smallest_k_ce", "frac_rm_per_batch": 0.3},
        {"weight_grad_reg_lambda": 0.3},
        {"input_grad_reg_lambda": 0.3},
        {"jac_reg_lambda": 0.3},
    ],
)
def test_groups_change_a_run_without_a_radius_where_examples_are_seen_together(
    beside: dict[str, Any], outcome: Any
) -> None:
    assert outcome(beside | {"acc_steps": 4}) != outcome(beside)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("beside", [{}, {"l1_reg": 0.1}, BATCH_NORM | {"freeze_bn_stats": True}])
def test_they_are_refused_where_examples_are_seen_alone(beside: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^acc_steps needs sam_rho or sam_lr_mult, or "):
        TrainConfig(**beside, acc_steps=4)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"m": 16}, "m needs sam_rho or sam_lr_mult"),
        ({"acc_steps": 2}, "acc_steps needs sam_rho or sam_lr_mult"),
        ({"bn_stats": "both", **BATCH_NORM}, "bn_stats needs sam_rho or sam_lr_mult"),
        ({"bn_stats": "frozen", **SAM}, "bn_stats needs a model with batch normalization"),
        (
            {"bn_stats": "both", "freeze_bn_stats": True, **SAM, **BATCH_NORM},
            "bn_stats needs freeze_bn_stats to be off",
        ),
        (
            {"scale_init": 1.0, "model": "linear", "model_path": "a"},
            "scale_init needs model_path to be left out",
        ),
        (
            {"sam_epoch_frac_start": 0.6, "sam_epoch_frac_end": 0.7, "epochs": 4, **SAM},
            "sam_epoch_frac_start and sam_epoch_frac_end must have the end of an epoch between them",
        ),
    ],
)
def test_what_nothing_would_read_is_refused(options: dict[str, Any], needed: str) -> None:
    with pytest.raises(InputError, match=f"^{needed}, "):
        TrainConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"m": 128},
        {"acc_steps": 1},
        {"sam_iters": 1},
        {"attack_iters": 10},
        {"model": "lenet", "model_width": 1},
    ],
)
def test_what_is_the_default_may_be_given(options: dict[str, Any]) -> None:
    TrainConfig(**options)


def test_a_stored_run_is_what_it_is_also_with_an_option_that_nothing_read() -> None:
    stored = TrainConfig().to_dict() | {"m": 16, "weight_perturb_distr": "uniform"}
    assert TrainConfig.from_dict(stored).to_dict() == stored
    with pytest.raises(InputError, match=r"^m must be positive"):
        TrainConfig.from_dict(stored | {"m": -1})


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.24), (0.51, 0.74), (0.26, 0.49), (0.25, 0.25), (0.9, 1.0)]
)
def test_a_window_is_refused_just_when_no_epoch_of_a_run_lies_in_it(start: float, end: float) -> None:
    options = {"epochs": 4, "sam_rho": 0.1, "sam_epoch_frac_start": start, "sam_epoch_frac_end": end}
    ends_in_it = any(start <= epoch / 4 <= end for epoch in (1, 2, 3, 4))
    assert bool(refusal(lambda: TrainConfig(**options))) != ends_in_it


def test_the_models_with_batch_normalization_are_known() -> None:
    widths = {name: None if width is None else 2 for name, width in DEFAULT_WIDTHS.items()}
    built = {name: build_model(name, num_classes=3, model_width=widths[name]) for name in MODEL_NAMES}
    assert tuple(name for name, model in built.items() if has_batch_norm(model)) == NORMALIZED_BY_BATCH
