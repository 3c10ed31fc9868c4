"""Runs: stopped and continued bit for bit, and changed by every option."""

import dataclasses
import functools
import importlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lowland.deep.training
from lowland.deep import (
    Control,
    Interrupted,
    Place,
    TrainConfig,
    TrainState,
    launch,
    load_data,
    summarize,
    train,
)
from lowland.deep.data import TrainingData
from lowland.deep.evaluation import ranking
from lowland.errors import InputError
from lowland.runs import Run

from .belongings import image_column, write_images, write_table
from .room import CPU, copied, make_data, same_bits, small

Rows = list[dict[str, Any]]


class Killed(BaseException):
    """What a killed process would have been."""


class KillAt:
    """Ends the process, as it were, after a number of steps or rows."""

    def __init__(self, *, step: int = 10**9, row: int = 10**9) -> None:
        self.step, self.rows_left = step, row

    def on_step(self, state: TrainState) -> None:
        if state.steps >= self.step:
            raise Killed

    def on_row(self, row: dict[str, Any]) -> None:  # noqa: ARG002
        self.rows_left -= 1
        if self.rows_left < 0:
            raise Killed


def start(config: TrainConfig, data: TrainingData, path: Path, control: Control | None = None) -> Rows:
    run = Run.create(path, config.to_dict(), {})
    return train(config, data, CPU, run, control or Control())


def timeless(rows: Rows) -> str:
    return json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])


def result(path: Path) -> tuple[str, str, bytes, list[str]]:
    """All that a run leaves, but for the times."""
    run = Run.open(path)
    summary = run.summary
    assert summary is not None
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*"))
    return (
        timeless(run.rows()),
        timeless([{"kind": kind, **row} for kind, row in summary.items()]),
        run.model_path.read_bytes(),
        files,
    )


RESUMED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr_max": 0.01, "lr_schedule": "cosine"},
    "sam with groups": {"sam_rho": 0.2, "m": 3, "l2_reg": 0.01},
    "max-sum": {"sam_rho": 0.2, "sam_use_prev_batch": True},
    "dropout": {"droprate": 0.4, "sam_rho": 0.2},
    "bf16": {"half_prec": "bf16"},
    "fp16": {"half_prec": "fp16"},
    "all noise": {
        "sgd_p_label_noise": 0.3,
        "add_weight_perturb_scale": 0.01,
        "mul_weight_perturb_scale": 0.01,
        "grad_gauss_std": 0.01,
    },
    "removal": {"n_rm_pts": 0.4, "epoch_rm_noise": 0.34},
    "rows between": {"eval_iter_freq": 2},
    "rows at the end of epochs": {"eval_iter_freq": 5, "save_model_each_k_epochs": 1},
    "cheap rows": {"n_eval_every_k_iter": 5},
    "augmented": {"dataset": "cifar10"},
}
KILLED = (
    "stopped",
    "killed, checkpoint after each step",
    "killed, checkpoint after each epoch",
    "killed in a row",
)


def interrupt(config: TrainConfig, data: TrainingData, path: Path, k: int, how: str) -> None:
    if how == "stopped":
        asked = itertools.count(1)
        with pytest.raises(Interrupted):
            start(config, data, path, Control(should_stop=lambda: next(asked) >= k))
    elif how == "killed in a row":
        with pytest.raises(Killed):
            start(config, data, path, Control(KillAt(row=min(k, 3)), checkpoint_every=0.0))
    else:
        every = 0.0 if "step" in how else None
        with pytest.raises(Killed):
            start(config, data, path, Control(KillAt(step=k), every))


ENDED = [
    *((name, how, k) for name in RESUMED for how in (KILLED[0], KILLED[2]) for k in (5, 8)),
    *((name, KILLED[0], k) for name in ("sgd", "removal") for k in (1, 4, 6, 9)),
    *((name, how, 7) for name in ("sgd", "removal", "max-sum", "adamw") for how in (KILLED[1], KILLED[3])),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a run leaves that was never ended, by its name in ``RESUMED``."""

    @functools.cache
    def of(name: str) -> Any:
        path = tmp_path_factory.mktemp("undisturbed") / "x"
        start(small(epochs=3, **RESUMED[name]), make_data(flipped=0.2), path)
        return result(path)

    return of


@pytest.mark.parametrize(("name", "how", "k"), ENDED)
def test_a_run_that_was_ended_and_continued_is_an_undisturbed_one(
    tmp_path: Path, undisturbed: Callable[[str], Any], name: str, how: str, k: int
) -> None:
    config, data = small(epochs=3, **RESUMED[name]), make_data(flipped=0.2)
    interrupt(config, data, tmp_path / "x", k, how)
    start(config, data, tmp_path / "x")
    assert result(tmp_path / "x") == undisturbed(name)


def test_a_run_may_be_ended_after_every_single_step(tmp_path: Path) -> None:
    config, data = (
        small(epochs=3, sam_rho=0.1, eval_iter_freq=3, n_rm_pts=0.3, epoch_rm_noise=0.34),
        make_data(),
    )
    start(config, data, tmp_path / "whole")
    stops = 0
    while not (tmp_path / "x" / "summary.json").exists():
        try:
            start(config, data, tmp_path / "x", Control(should_stop=lambda: True))
        except Interrupted:
            stops += 1
    assert stops == Run(tmp_path / "whole").rows()[-1]["step"]
    assert result(tmp_path / "x") == result(tmp_path / "whole")


def test_two_kills_before_the_first_checkpoint_leave_no_trace(tmp_path: Path) -> None:
    config, data = small(), make_data()
    start(config, data, tmp_path / "whole")
    for _ in range(2):
        interrupt(config, data, tmp_path / "x", 3, "killed, checkpoint after each epoch")
    start(config, data, tmp_path / "x")
    assert result(tmp_path / "x") == result(tmp_path / "whole")


def test_a_run_with_batch_norm_is_continued_identically(tmp_path: Path) -> None:
    config = small(model="resnet_tiny", model_width=2, batch_size=4, sam_rho=0.1, sam_use_prev_batch=True)
    data = make_data(12, shape=(1, 32, 32))
    start(config, data, tmp_path / "whole")
    interrupt(config, data, tmp_path / "x", 4, "stopped")
    start(config, data, tmp_path / "x")
    assert result(tmp_path / "x") == result(tmp_path / "whole")
    tensors = load_file(tmp_path / "x" / "model.safetensors")
    assert any(name.startswith("swa_best.") and "running_mean" in name for name in tensors)


def test_a_half_written_last_row_is_repaired(tmp_path: Path) -> None:
    config, data = small(), make_data()
    start(config, data, tmp_path / "whole")
    interrupt(config, data, tmp_path / "x", 7, "stopped")
    with (tmp_path / "x" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 1.4, "ste')
    start(config, data, tmp_path / "x")
    assert result(tmp_path / "x") == result(tmp_path / "whole")


def test_missing_rows_are_refused_by_the_files_name(tmp_path: Path) -> None:
    config, data = small(), make_data()
    interrupt(config, data, tmp_path / "x", 7, "stopped")
    (tmp_path / "x" / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"metrics.jsonl must have the checkpoint's 2 rows, has 0"):
        start(config, data, tmp_path / "x")


def test_a_damaged_checkpoint_is_refused_and_not_trained_over(tmp_path: Path) -> None:
    config, data = small(), make_data()
    interrupt(config, data, tmp_path / "x", 7, "stopped")
    checkpoint = Run(tmp_path / "x").checkpoint_path
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    rows = Run(tmp_path / "x").rows()
    with pytest.raises(InputError, match=f"^{checkpoint} must be a whole safetensors file"):
        start(config, data, tmp_path / "x")
    assert Run(tmp_path / "x").rows() == rows


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = small(), make_data()
    start(config, data, tmp_path / "whole")
    interrupt(config, data, tmp_path / "x", 3, "stopped")

    def fails(tensors: Any, path: Path, metadata: Any = None) -> None:  # noqa: ARG001
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lowland.deep.tensors.save_file", fails)
        with pytest.raises(OSError, match="No space"):
            start(config, data, tmp_path / "x")
    assert [p.name for p in (tmp_path / "x" / "checkpoint").iterdir()] == ["state.safetensors"]
    start(config, data, tmp_path / "x")
    assert result(tmp_path / "x") == result(tmp_path / "whole")


def test_a_finished_run_started_again_stays_as_it_is(tmp_path: Path) -> None:
    config, data = small(save_model_each_k_epochs=1), make_data()
    start(config, data, tmp_path / "x")
    before = result(tmp_path / "x")
    start(config, data, tmp_path / "x")
    assert result(tmp_path / "x") == before


def test_time_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr(lowland.deep.training.time, "monotonic", lambda: float(next(clock)))
    interrupt(small(), make_data(), tmp_path / "x", 7, "stopped")
    last = Run(tmp_path / "x").rows()[-1]["seconds"]
    for _ in range(100):
        next(clock)  # a pause of 1000 seconds
    rows = start(small(), make_data(), tmp_path / "x")
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert last < seconds[-1] < last + 500


@pytest.mark.parametrize(
    "options", [{"droprate": 0.5}, {"sgd_p_label_noise": 0.5, "attack": "pgd", "eps": 1.0}]
)
def test_the_default_generator_is_neither_used_nor_moved(options: dict[str, Any]) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(timeless(train(small(**options), make_data(), CPU, None, Control())))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]


def test_the_default_generator_is_put_back_when_training_is_ended() -> None:
    before = torch.get_rng_state()
    with pytest.raises(Interrupted):
        train(small(droprate=0.5), make_data(), CPU, None, Control(should_stop=lambda: True))
    assert torch.equal(torch.get_rng_state(), before)


class Watch:
    """Notes what an observer is told, and copies of the weights."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: Rows = []
        self.state: TrainState | None = None
        self.at_row: list[dict[str, torch.Tensor]] = []
        self.epochs: dict[int, dict[str, torch.Tensor]] = {}
        self.kept: dict[int, torch.Tensor] = {}
        self.wanted: dict[int, torch.Tensor] = {}

    def on_step(self, state: TrainState) -> None:
        self.steps.append(state.steps)
        self.state = state
        self.epochs[state.epoch] = copied(state.model)
        self.kept[state.epoch] = state.kept.clone()
        # what the epoch after this one would begin with, were it the one of the removal
        self.wanted[state.epoch] = ranking(state.config, state.model, state.train)

    def on_row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.state is not None:
            self.at_row.append(copied(self.state.model))


def watched(**options: Any) -> Watch:
    watch = Watch()
    train(small(**options), make_data(flipped=0.2), CPU, None, Control(watch))
    return watch


def test_the_observer_is_told_of_each_step_and_row() -> None:
    watch = watched()
    assert watch.steps == list(range(1, 11))
    assert [(row["step"], row["epoch"]) for row in watch.rows] == [(0, 0.0), (5, 1.0), (10, 2.0)]


@pytest.mark.parametrize(
    ("options", "full"),
    [
        ({"epochs": 7}, [0, 0, 0, 0, 0, 1, 0, 1]),
        ({"epochs": 2, "eval_iter_freq": 3}, {0: 0, 3: 1, 5: 0, 6: 1, 9: 1, 10: 1}),
        ({"epochs": 2, "eval_iter_freq": 5}, {0: 0, 5: 1, 10: 1}),
    ],
)
def test_full_evaluations_come_every_five_epochs_or_as_often_as_asked_and_at_the_end(
    options: dict[str, Any], full: Any
) -> None:
    rows = watched(n_eval_every_k_iter=10, **options).rows
    expected = full if isinstance(full, dict) else dict(zip(range(0, 40, 5), full, strict=True))
    assert {row["step"]: int(row["full"]) for row in rows} == expected


def test_a_row_that_sees_all_examples_anyway_is_a_full_one() -> None:
    assert all(row["full"] for row in watched(n_eval_every_k_iter=24).rows)


@pytest.mark.parametrize("criterion", ["loss", "entropy"])
def test_the_hardest_points_are_dropped_once_at_their_epoch(criterion: str) -> None:
    watch = watched(
        epochs=5, n_rm_pts=0.3, epoch_rm_noise=0.4, rm_criterion=criterion, lr_max=0.3, eval_iter_freq=1
    )
    for epoch in (1, 2):
        assert torch.equal(watch.kept[epoch], torch.arange(40))
    easiest = watch.wanted[2].argsort()[:28].sort().values
    for epoch in (3, 4, 5):
        assert torch.equal(watch.kept[epoch], easiest)
    assert sum(row["step"] > 10 for row in watch.rows) == 3 * (28 // 8)


def test_the_epoch_of_the_removal_is_not_moved_by_rounding() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point
    watch = Watch()
    config = small(model="linear", batch_size=20, epochs=100, n_rm_pts=0.5, epoch_rm_noise=0.29, lr_max=0.0)
    train(config, make_data(40), CPU, None, Control(watch))
    assert (len(watch.kept[29]), len(watch.kept[30])) == (40, 20)


def test_weights_are_kept_every_so_many_epochs(tmp_path: Path) -> None:
    watch = Watch()
    start(small(epochs=5, save_model_each_k_epochs=2), make_data(), tmp_path / "x", Control(watch))
    found = sorted(p.name for p in (tmp_path / "x").glob("model-*"))
    assert found == ["model-epoch-0002.safetensors", "model-epoch-0004.safetensors"]
    for epoch in (2, 4):
        assert same_bits(
            load_file(tmp_path / "x" / f"model-epoch-{epoch:04d}.safetensors"), watch.epochs[epoch]
        )


def test_the_final_file_holds_the_last_and_the_best_weights_and_their_averages(tmp_path: Path) -> None:
    data = make_data(flipped=0.3)
    watch = Watch()
    config = small(epochs=6, lr_max=0.5, eval_iter_freq=1)
    rows = start(config, data, tmp_path / "x", Control(watch))
    tensors = load_file(tmp_path / "x" / "model.safetensors")
    states = {
        kind: {k.removeprefix(f"{kind}."): t for k, t in tensors.items() if k.startswith(f"{kind}.")}
        for kind in ("last", "best", "swa_last", "swa_best")
    }
    assert len(tensors) == sum(map(len, states.values()))
    assert watch.state is not None
    assert same_bits(states["last"], copied(watch.state.model))
    assert same_bits(states["swa_last"], copied(watch.state.average.model))
    errors = [row["validation_error"] for row in rows]
    best = errors.index(min(errors))
    assert 0 < best < len(rows) - 1
    assert same_bits(states["best"], watch.at_row[best - 1])
    summary = Run(tmp_path / "x").summary
    assert summary is not None
    assert summary["best"] == rows[best]
    assert summary["last"] == rows[-1]


def test_the_summary_selects_on_validation_and_among_full_rows() -> None:
    columns = ("full", "validation_error", "swa_validation_error", "test_error")
    table = [(True, 0.5, 0.5, 0.0), (False, 0.0, 0.0, 0.1), (True, 0.3, 0.5, 0.2), (True, 0.3, 0.1, 0.3)]
    rows: Rows = [dict(zip(columns, values, strict=True)) for values in table]
    assert summarize(rows) == {"last": rows[3], "best": rows[2], "swa_best": rows[3]}


def test_a_run_that_diverges_is_a_result_and_no_accident(tmp_path: Path) -> None:
    config = small(lr_max=1e30, n_layers=3, eval_iter_freq=1)
    rows = start(config, make_data(), tmp_path / "x")
    assert len(rows) == 11
    assert Run(tmp_path / "x").summary is not None


def write_svhn(folder: Path, count: int = 60) -> None:
    """A set with augmentation and with asymmetric label noise."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        images = []
        for pixels in generator.integers(0, 256, (count, 32, 32, 3), np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = {"image": pa.array(images, struct), "label": pa.array([i % 10 for i in range(count)])}
        (folder / "svhn").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), folder / "svhn" / f"{part}-0.parquet")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """All that a run of some options leaves: rows, bytes of the weights, names of the files."""
    folder = tmp_path_factory.mktemp("options")
    write_svhn(folder)
    write_images(folder / "photos")
    columns = {"a": image_column(40), "b": image_column(40, seed=1)}
    labels = {"label": np.arange(40) % 3, "z": np.arange(40) % 2}
    write_table(folder / "two.parquet", columns | labels)
    count = itertools.count()
    known: dict[str, tuple[Any, ...]] = {}
    data: dict[str, TrainingData] = {}
    module = importlib.import_module("lowland.deep.launch")
    read = module.load_data

    def remembered(config: TrainConfig, place: Place) -> TrainingData:
        if config.data is not None or config.normalize:
            return read(config, place)
        of = (config.dataset, config.seed, config.frac_train, config.p_label_noise, config.noise_type)
        convolutional = config.model not in {"fc", "linear"}
        return data.setdefault(str((of, convolutional)), read(config, place))

    def run(options: dict[str, Any]) -> tuple[Any, ...]:
        key = str(sorted(options.items()))
        if key not in known:
            path = folder / str(next(count))
            base = {"dataset": "digits", "frac_train": 0.2, "batch_size": 32}
            config = small(**{**base, **options})
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "load_data", remembered)
                rows = launch(config, path, Place("cpu", folder, directory=folder), Control())
            run = Run.open(path)
            files = sorted(str(p.relative_to(path)) for p in path.rglob("*"))
            known[key] = (timeless(rows), run.model_path.read_bytes(), files)
        return known[key]

    return run


CNN: dict[str, Any] = {"model": "resnet_tiny", "model_width": 2, "frac_train": 0.05, "epochs": 1}
SAM: dict[str, Any] = {"sam_rho": 0.2}
FOUR: dict[str, Any] = {"epochs": 4}
PGD: dict[str, Any] = {"attack": "pgd", "eps": 20.0}
SVHN: dict[str, Any] = {"dataset": "svhn", "frac_train": 1.0, "batch_size": 16, "model": "linear"}

PHOTOS: dict[str, Any] = {"data": "photos", "frac_train": 1.0, "batch_size": 8}
TABLE: dict[str, Any] = PHOTOS | {"data": "two.parquet", "input_column": "a"}

# What each option is changed from and to; together these are all options.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "data": ({}, PHOTOS),
    "input_column": (TABLE, {"input_column": "b"}),
    "target_column": (TABLE, {"target_column": "z"}),
    "image_size": (PHOTOS, {"image_size": 4}),
    "channels": (PHOTOS, {"channels": 1}),
    "normalize": ({}, {"normalize": True}),
    "augment": (PHOTOS, {"augment": ("crop",)}),
    "model_arg": ({"model": "own_code:net", "model_width": None}, {"model_arg": ("width=3",)}),
    "dataset": ({}, {"dataset": "gaussians_binary"}),
    "frac_train": ({}, {"frac_train": 0.15}),
    "p_label_noise": ({}, {"p_label_noise": 0.3}),
    "noise_type": ({**SVHN, "p_label_noise": 0.3}, {"noise_type": "asym"}),
    "no_data_augm": (SVHN | {"model": "fc"}, {"no_data_augm": True}),
    "model": ({}, {"model": "linear"}),
    "model_width": ({}, {"model_width": 7}),
    "activation": ({}, {"activation": "softplus10"}),
    "droprate": ({}, {"droprate": 0.2}),
    "scale_init": ({"model": "linear"}, {"scale_init": 3.0}),
    "n_layers": ({}, {"n_layers": 2}),
    "batch_size": ({}, {"batch_size": 31}),
    "epochs": ({}, {"epochs": 3}),
    "optimizer": ({}, {"optimizer": "adagrad"}),
    "optimizer_options": ({}, {"optimizer_options": ("momentum=0.8",)}),
    "lr_max": ({}, {"lr_max": 0.2}),
    "lr_schedule": ({}, {"lr_schedule": "cosine"}),
    "half_prec": ({}, {"half_prec": "bf16"}),
    "dtype": ({}, {"dtype": "float64"}),
    "loss": ({}, {"loss": "gce"}),
    "loss_offset": ({"dataset": "gaussians_binary", "loss": "ce_offset"}, {"loss_offset": 1.0}),
    "gce_q": ({"loss": "gce"}, {"gce_q": 0.5}),
    "frac_rm_per_batch": ({"loss": "smallest_k_ce"}, {"frac_rm_per_batch": 0.2}),
    "l1_reg": ({}, {"l1_reg": 0.01}),
    "l2_reg": ({}, {"l2_reg": 0.01}),
    "weight_grad_reg_lambda": ({}, {"weight_grad_reg_lambda": 0.1}),
    "input_grad_reg_lambda": ({}, {"input_grad_reg_lambda": 1.0}),
    "jac_reg_lambda": ({}, {"jac_reg_lambda": 1.0}),
    "sgd_p_label_noise": ({}, {"sgd_p_label_noise": 0.3}),
    "ln_schedule": ({"sgd_p_label_noise": 0.5}, {"ln_schedule": "piecewise_3_9"}),
    "add_weight_perturb_scale": ({}, {"add_weight_perturb_scale": 0.01}),
    "mul_weight_perturb_scale": ({}, {"mul_weight_perturb_scale": 0.1}),
    "weight_perturb_distr": ({"add_weight_perturb_scale": 0.1}, {"weight_perturb_distr": "uniform"}),
    "grad_gauss_std": ({}, {"grad_gauss_std": 0.01}),
    "n_rm_pts": ({"n_rm_pts": 0.2, "epoch_rm_noise": 0.5}, {"n_rm_pts": 0.4}),
    "epoch_rm_noise": ({**FOUR, "n_rm_pts": 0.3, "epoch_rm_noise": 0.25}, {"epoch_rm_noise": 0.5}),
    "rm_criterion": ({"n_rm_pts": 0.4, "epoch_rm_noise": 0.5}, {"rm_criterion": "entropy"}),
    "sam_rho": (SAM, {"sam_rho": 0.1}),
    "m": (SAM, {"m": 5}),
    "acc_steps": (SAM, {"acc_steps": 4}),
    "sam_iters": ({**SAM, "sam_step_size_mult": 0.4}, {"sam_iters": 2}),
    "sam_step_size_mult": (SAM, {"sam_step_size_mult": 0.5}),
    "sam_lr_mult": ({}, {"sam_lr_mult": 1.0}),
    "sam_epoch_frac_start": (SAM, {"sam_epoch_frac_start": 0.9}),
    "sam_epoch_frac_end": (SAM, {"sam_epoch_frac_end": 0.5}),
    "sam_no_grad_norm": (SAM, {"sam_no_grad_norm": True}),
    "sam_clip": ({"sam_rho": 0.2, "sam_no_grad_norm": True, "l2_reg": 2.0}, {"sam_clip": True}),
    "sam_use_prev_batch": (SAM, {"sam_use_prev_batch": True}),
    "only_sam_step_size": (SAM, {"only_sam_step_size": True}),
    "bn_stats": ({**CNN, **SAM}, {"bn_stats": "both"}),
    "freeze_bn_stats": (CNN, {"freeze_bn_stats": True}),
    "swa_tau": ({}, {"swa_tau": 0.9}),
    "attack": ({}, PGD),
    "at_norm": (PGD, {"at_norm": "l2"}),
    "eps": (PGD, {"eps": 40.0}),
    "attack_iters": (PGD | {"at_norm": "l2", "eps": 0.3, "model": "linear"}, {"attack_iters": 1}),
    "batch_size_eval": ({**CNN, "epochs": 1}, {"batch_size_eval": 20}),
    "n_final_eval": ({}, {"n_final_eval": 100}),
    "n_eval_every_k_iter": ({}, {"n_eval_every_k_iter": 100}),
    "eval_iter_freq": ({}, {"eval_iter_freq": 2}),
    "save_model_each_k_epochs": ({}, {"save_model_each_k_epochs": 1}),
    "export_images": ({}, {"export_images": True}),
    "seed": ({}, {"seed": 1}),
}


MEASURED_ONLY = {
    "at_norm",
    "attack",
    "eps",
    "attack_iters",
    "n_final_eval",
    "n_eval_every_k_iter",
    "eval_iter_freq",
}


def test_the_table_of_changes_holds_every_option() -> None:
    others = {"model_path", "model_type"}  # below
    others |= {"engine"}  # changes the time only
    assert CHANGES.keys() | others == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_what_a_run_leaves(
    name: str, outcome: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> None:
    base, change = CHANGES[name]
    assert name in change
    before, after = outcome(base), outcome({**base, **change})
    if name in {"save_model_each_k_epochs", "export_images"}:
        assert before[:2] == after[:2]
        assert before[2] != after[2]
    elif name in MEASURED_ONLY:
        assert before[0] != after[0]
    else:
        assert before[1] != after[1]


def test_weights_to_start_from_are_those_of_the_kind_asked_for(tmp_path: Path) -> None:
    data = make_data(flipped=0.3)
    start(small(lr_max=0.5, swa_tau=0.5), data, tmp_path / "first")
    tensors = load_file(tmp_path / "first" / "model.safetensors")
    for kind in ("last", "swa_last"):
        config = small(model_path=str(tmp_path / "first"), model_type=kind)
        state = TrainState(config, data, CPU)
        wanted = {k.removeprefix(f"{kind}."): t for k, t in tensors.items() if k.startswith(f"{kind}.")}
        assert same_bits(copied(state.model), wanted)
        assert same_bits(copied(state.average.model), wanted)


def test_the_digits_are_learned() -> None:
    config = TrainConfig(model="linear", epochs=5, batch_size=32, sam_rho=0.05)
    rows = train(config, load_data(config), CPU, None, Control())
    assert rows[0]["test_error"] > 0.7
    assert rows[-1]["test_error"] < 0.15
