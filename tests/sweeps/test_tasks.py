"""Training, measuring and looking between networks as tasks: named by their configs, continued, and right."""

import dataclasses

import pytest
from safetensors.torch import load_file

from lowland.deep import Control, Interrupted, Place, TrainConfig, launch, run_name
from lowland.deep.flatness import FlatnessConfig
from lowland.deep.view import SceneryConfig
from lowland.diagonal.experiment import DiagonalConfig
from lowland.diagonal.theorem2 import Theorem2Config
from lowland.relu.experiment import ReluConfig
from lowland.runs import config_hash, read_table
from lowland.sweeps import Between, Here, How, Measured, Simulation, Store, Training, carried_out
from lowland.sweeps.cost import weights_of
from sweeps.counted import Heard

TINY = TrainConfig(model="fc", model_width=8, epochs=2, batch_size=64, lr_max=0.05)
HERE = Place("cpu", None, 1)


def carry(store, *tasks):
    assert carried_out(tasks, store, Here(), place=HERE, watch=Heard()) == {}


def test_a_training_task_is_the_run_that_lowland_train_makes(tmp_path) -> None:
    store, task = Store(tmp_path / "runs"), Training(TINY)
    assert task.name == run_name(TINY)
    carry(store, task)
    launch(TINY, tmp_path / "own", HERE, Control())
    ours, theirs = (
        load_file(path / "model.safetensors") for path in (store.run(task).path, tmp_path / "own")
    )
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_run_that_starts_from_another_is_named_by_it_and_starts_there(tmp_path) -> None:
    store, first = Store(tmp_path / "runs"), Training(TINY)
    other = Training(dataclasses.replace(TINY, seed=1))
    still = dataclasses.replace(TINY, lr_max=0.0, epochs=1)
    names = {Training(still).name, Training(still, first).name, Training(still, other).name}
    assert len(names) == 3
    assert Training(still, first).describe()["model_path"] == first.name
    assert Training(still, first).name.endswith(config_hash(Training(still, first).describe()))
    carry(store, Training(still, first))
    a, b = (load_file(store.run(task).model_path) for task in (first, Training(still, first)))
    weights = [name for name in a if name.startswith("last.")]
    assert weights
    assert all((a[name] == b[name]).all() for name in weights)


def test_a_stopped_training_task_continues_bit_for_bit(tmp_path) -> None:
    whole, parts, task = Store(tmp_path / "whole"), Store(tmp_path / "parts"), Training(TINY)
    carry(whole, task)
    shares: list[float] = []
    with pytest.raises(Interrupted):
        task.carry_out(parts, How(HERE, shares.append, lambda: len(shares) > 25))
    assert 0.0 < shares[-1] < 1.0
    assert sorted(shares) == shares
    carry(parts, task)
    a, b = (load_file(store.run(task).model_path) for store in (whole, parts))
    assert all((a[name] == b[name]).all() for name in a)
    rows = [[{**row, "seconds": 0} for row in store.run(task).rows()] for store in (whole, parts)]
    assert rows[0] == rows[1]


def test_measures_of_a_run_are_taken_once_and_continued(tmp_path) -> None:
    store = Store(tmp_path / "runs")
    config = FlatnessConfig(rho=(0.1, 0.2), m=(8, 32), n_eval=32, steps=3)
    task = Measured(Training(TINY), config)
    carry(store, Training(TINY))
    stored = store.run(task).path / "metrics.jsonl"
    stopped = How(HERE, lambda _: None, lambda: stored.exists() and stored.stat().st_size > 0)
    with pytest.raises(Interrupted):
        task.carry_out(store, stopped)
    begun = store.run(task).rows()
    assert len(begun) == 1
    assert not store.has(task)
    carry(store, task)
    rows = store.run(task).rows()
    assert rows[0] == begun[0]
    assert sorted((row["m"], row["rho"]) for row in rows) == [(8, 0.1), (8, 0.2), (32, 0.1), (32, 0.2)]
    assert all(row["value"] >= 0.0 for row in rows)
    assert store.run(task).summary["runs"] == rows


def test_the_line_between_two_runs_has_both_at_its_ends(tmp_path) -> None:
    store = Store(tmp_path / "runs")
    a, b = Training(TINY), Training(dataclasses.replace(TINY, sam_rho=0.1))
    task = Between(a, b, SceneryConfig(view="line", points=4, low=-1.0, high=2.0, n_eval=10_000))
    assert [needed.name for needed in task.needs] == [a.name, b.name]
    carry(store, task)
    rows = {row["t"]: row for row in store.run(task).rows()}
    for t, run in ((0.0, a), (1.0, b)):
        last = store.run(run).rows()[-1]
        assert rows[t]["test_loss"] == pytest.approx(last["test_loss"], rel=1e-5)
        assert rows[t]["test_error"] == pytest.approx(last["test_error"], abs=1e-9)


@pytest.mark.parametrize(
    ("config", "runs"),
    [
        (DiagonalConfig(steps=50, rho=(0.1,)), 3),
        (ReluConfig(steps=50, seeds=2), 4),
        (Theorem2Config(steps=30, seeds=2), 4),
    ],
)
def test_simulations_leave_rows_tables_and_all_of_their_progress(tmp_path, config, runs) -> None:
    store, task = Store(tmp_path / "runs"), Simulation(config)
    shares: list[float] = []
    store.path.mkdir()
    task.carry_out(store, How(HERE, shares.append))
    assert shares[-1] == 1.0
    assert len(shares) == runs
    assert len(store.run(task).rows()) == runs
    assert len(read_table(store.run(task).path / "result.parquet")["run"]) >= runs
    assert store.run(task).config == task.describe()


def test_costs_grow_with_epochs_groups_of_passes_and_networks() -> None:
    base = TrainConfig(dataset="mnist", model="fc", n_layers=2, model_width=512, epochs=40)
    cost = {
        "base": Training(base).cost(),
        "twice": Training(dataclasses.replace(base, epochs=80)).cost(),
        "sam": Training(dataclasses.replace(base, sam_rho=0.1)).cost(),
        "ten": Training(dataclasses.replace(base, sam_rho=0.1, sam_iters=10)).cost(),
        "half": Training(dataclasses.replace(base, sam_rho=0.1, sam_epoch_frac_start=0.5)).cost(),
        "wide": Training(dataclasses.replace(base, model="resnet18", model_width=64, n_layers=1)).cost(),
    }
    assert cost["twice"] == pytest.approx(2 * cost["base"])
    assert cost["base"] < cost["half"] < cost["sam"] < cost["ten"] < cost["wide"]


def test_weights_are_counted() -> None:
    layers = [(784, 512), (512, 512), (512, 10)]
    config = TrainConfig(dataset="mnist", model="fc", n_layers=2, model_width=512)
    assert weights_of(config) == sum(a * b + b for a, b in layers)
