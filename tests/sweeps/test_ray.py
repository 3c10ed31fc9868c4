"""Tasks on Ray: in its workers, their files through its object store, tried again from where they were."""

import logging
import os
import tarfile
import time
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import pytest

from lowland.deep import Interrupted, Place
from lowland.errors import InputError
from lowland.runs import Run
from lowland.sweeps import Here, Store, carried_out
from lowland.sweeps.parcel import packed, swept, unpacked
from sweeps.counted import Counted, Heard

Ray = pytest.importorskip("lowland.sweeps.ray").Ray

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the workers find the tasks
    return Store(tmp_path / "runs")


def carry(tasks, store, engine, **options):
    heard = Heard()
    failures = carried_out(tasks, store, engine, place=Place("cpu", None, 1), watch=heard, **options)
    return failures, heard


@pytest.mark.slow
def test_tasks_run_in_workers_in_order_and_those_that_are_killed_go_on(store, caplog) -> None:
    a = Counted("a")
    wrong, killed = Counted("wrong", ends="wrong"), Counted("killed", ends="killed")
    once = Counted("once", steps=12, ends="killed once", pause=0.5)
    needing = Counted("needing", after=(a, once))
    with caplog.at_level(logging.WARNING, "lowland.sweeps.ray"):
        failures, heard = carry(
            [needing, a, wrong, killed, once], store, Ray(jobs=2, retries=1, checkpoint_every=0.0)
        )
    assert failures.keys() == {wrong.name, killed.name}
    assert failures[wrong.name] == "steps must be good ones, got bad ones."
    assert failures[killed.name].startswith("its worker ended, at the last of 2 tries: ")
    assert {name: reason for name, reason in heard.ended.items() if reason} == failures
    again = [message.partition(":")[0] for message in caplog.messages if "its worker ended" in message]
    assert sorted(again) == sorted([killed.name, once.name])
    processes = {t.label: [row["process"] for row in store.run(t).rows()] for t in (a, once, needing)}
    assert os.getpid() not in {pid for pids in processes.values() for pid in pids}
    assert [row["step"] for row in store.run(once).rows()] == list(range(12))
    first, last = processes["once"][0], processes["once"][-1]
    assert first != last
    assert 0 < processes["once"].count(first) <= 7, "what it had done before was not done again"
    assert all(store.has(task) for task in (a, once, needing))
    assert set(store.times()) == {task.name for task in (a, once, needing)}
    assert max(heard.shares[once.name]) > 0.5
    assert not [path for path in store.path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_what_was_stopped_goes_on_elsewhere_and_what_had_not_begun_does_not(store) -> None:
    both = [Counted("one", steps=3000, pause=0.05), Counted("other", steps=3000, pause=0.05)]
    heard, started = Heard(), time.monotonic()
    with pytest.raises(Interrupted):
        carried_out(
            both,
            store,
            Ray(jobs=1),
            place=Place("cpu", None, 1),
            watch=heard,
            should_stop=lambda: any(shares[-1] > 0.0 for shares in heard.shares.values()),
        )
    assert time.monotonic() - started < 300
    begun = next(task for task in both if heard.shares[task.name][-1:] > [0.0])  # Ray promises no order
    before = store.run(begun).rows()
    assert 0 < len(before) < 3000
    not_begun = [task for task in both if task.name not in heard.started]
    assert not any(store.run(task).path.exists() for task in not_begun)
    failures, _ = carry([Counted(begun.label, steps=3000)], store, Here())
    assert failures == {}
    assert store.run(begun).rows()[: len(before)] == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "auto"])
def test_a_cluster_that_is_not_there_is_told_and_nothing_is_written(store, address, monkeypatch) -> None:
    if address == "auto":  # others on this machine may have one
        monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionError("there is no Ray here")))
    with pytest.raises(InputError, match=f"^address must be that of a Ray cluster, got '{address}': "):
        carry([Counted("a")], store, Ray(address))
    assert not store.path.exists()


def test_a_parcel_is_the_run_without_its_lock_and_half_written_files(tmp_path) -> None:
    run = tmp_path / "a" / "run"
    (run / "checkpoint").mkdir(parents=True)
    kept = ("config.json", "metrics.jsonl", "checkpoint/state.safetensors", "summary.json")
    for name in kept:
        (run / name).write_text(name)
    (run / ".lock").touch()
    (run / ".config.json.0123abcd-1-0123abcd-0.tmp").touch()
    there = tmp_path / "b"
    (there / "run").mkdir(parents=True)
    (there / "run" / "config.json").write_text("older")
    unpacked(packed(run), there)
    found = {str(p.relative_to(there / "run")): p.read_text() for p in there.rglob("*") if p.is_file()}
    assert found == {name: name for name in kept}
    assert [path.name for path in there.iterdir()] == ["run"]
    unpacked(packed(tmp_path / "nothing"), there)
    assert [path.name for path in there.iterdir()] == ["run"]
    begun = Run.create(tmp_path / "begun", {}, {})  # has no checkpoint yet, and a place for one
    unpacked(packed(begun.path), there)
    assert (there / "begun" / "checkpoint").is_dir()


def test_what_says_how_far_a_run_is_arrives_after_what_it_says_that_of(tmp_path, monkeypatch) -> None:
    run, arrived, replace = tmp_path / "a" / "run", [], Path.replace
    (run / "checkpoint").mkdir(parents=True)
    for name in (
        "summary.json",
        "checkpoint/state.safetensors",
        "model.safetensors",
        "metrics.jsonl",
        "env.json",
    ):
        (run / name).touch()
    monkeypatch.setattr(Path, "replace", lambda old, new: (arrived.append(new.name), replace(old, new)))
    unpacked(packed(run), tmp_path / "b")
    assert arrived == ["env.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "summary.json"]


def test_a_parcel_that_leads_elsewhere_is_refused(tmp_path) -> None:
    held = BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpacked(held.getvalue(), tmp_path / "store")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "store" / ".incoming-x").mkdir()
    swept(tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())
