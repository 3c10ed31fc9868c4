"""Tasks are carried out once, in the order of what they need, whatever happens to the others."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowland.deep import Interrupted, Place
from lowland.sweeps import Here, Processes, Store, carried_out, in_levels
from sweeps.counted import Counted, Heard

ENGINES = [Here(), Processes(2)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def carry(tasks, store, engine, **options):
    heard = Heard()
    failures = carried_out(tasks, store, engine, place=Place("cpu", None, 1), watch=heard, **options)
    return failures, heard


def test_levels_hold_each_task_once_and_after_what_it_needs() -> None:
    a, b = Counted("a"), Counted("b")
    c = Counted("c", after=(a, b))
    d = Counted("d", after=(c, a))
    levels = [[task.label for task in level] for level in in_levels([d, c, Counted("a")])]
    assert levels == [["a", "b"], ["c"], ["d"]]
    assert in_levels([]) == []


@pytest.mark.parametrize(("engine", "processes"), [(Here(), 1), (Processes(2), 2)])
def test_everything_is_done_once_by_so_many_processes_and_kept(engine, processes, store) -> None:
    a = Counted("a", pause=0.1)
    first = [a, *(Counted(f"c{i}", pause=0.1) for i in range(3))]
    tasks = [Counted("b", after=(a,)), *first]
    failures, heard = carry(tasks, store, engine)
    assert failures == {}
    assert sorted(heard.started) == sorted(task.name for task in tasks)
    assert all(store.has(task) for task in tasks)
    assert [len(store.run(task).rows()) for task in tasks] == [3] * len(tasks)
    rows = [row for task in first for row in store.run(task).rows()]
    assert len({row["process"] for row in rows}) == processes
    assert {row["threads"] for row in rows} == {1}
    assert set(store.times()) == {task.name for task in tasks}
    assert all(share[-1] <= 1.0 for share in heard.shares.values())
    again, heard = carry(tasks, store, engine)
    assert (again, heard.started) == ({}, [])


def test_nobody_needs_to_watch(store) -> None:
    good, wrong = Counted("good"), Counted("wrong", ends="wrong")
    needing = Counted("needing", after=(wrong,))
    failures = carried_out([good, wrong, needing], store, Here(), place=Place("cpu"))
    assert set(failures) == {wrong.name, needing.name}
    assert store.has(good)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_failure_is_told_and_costs_only_what_needs_it(engine, store, caplog) -> None:
    wrong, broken = Counted("wrong", ends="wrong"), Counted("broken", ends="broken")
    needing, deep = Counted("x", after=(wrong,)), Counted("y", after=(Counted("x", after=(wrong,)),))
    good = [Counted(f"good{i}") for i in range(3)]
    with caplog.at_level(logging.CRITICAL, "lowland.sweeps.engine"):
        failures, heard = carry([wrong, *good, broken, deep], store, engine)
    assert failures == {
        wrong.name: "steps must be good ones, got bad ones.",
        broken.name: "ZeroDivisionError: no steps",
        needing.name: f"it needs {wrong.name}, which failed.",
        deep.name: f"it needs {needing.name}, which failed.",
    }
    assert {name: reason for name, reason in heard.ended.items() if reason} == failures
    assert all(store.has(task) for task in good)
    assert set(store.times()) == {task.name for task in good}


def test_a_killed_process_is_a_failure_and_another_takes_its_place(store) -> None:
    killed, good = Counted("killed", ends="killed"), [Counted(f"good{i}") for i in range(4)]
    failures, _ = carry([killed, *good], store, Processes(1))
    assert failures == {killed.name: "its process ended with exit code -9."}
    assert all(store.has(task) for task in good)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_stopped_goes_on_where_it_was(engine, store) -> None:
    task, never = Counted("long", steps=300, pause=0.05), Counted("never")
    with pytest.raises(Interrupted):
        carry([task], store, engine, should_stop=lambda: len(store.run(task).rows()) >= 2)
    before = store.run(task).rows()
    assert 2 <= len(before) < 300
    with pytest.raises(Interrupted):
        carry([never], store, engine, should_stop=lambda: True)
    assert not store.has(never)
    failures, _ = carry([Counted("long", steps=300), never], store, Here())
    rows = store.run(task).rows()
    assert failures == {}
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows] == list(range(300))


SCRIPT = """
import sys
from pathlib import Path
from sweeps.counted import Counted, Heard
from lowland.deep import Place
from lowland.sweeps import Processes, Store, carried_out

if __name__ == "__main__":
    tasks = [Counted(f"t{i}", steps=300, pause=0.05) for i in range(3)]
    carried_out(tasks, Store(Path(sys.argv[1])), Processes(2), place=Place("cpu", None, 1), watch=Heard())
"""


def test_after_a_kill_no_process_is_left_and_everything_goes_on_where_it_was(store, tmp_path) -> None:
    tasks = [Counted(f"t{i}", steps=300, pause=0.05) for i in range(3)]
    script = tmp_path / "figure.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, str(script), str(store.path)]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as killed:
        while not all(store.run(task).rows() for task in tasks[:2]):
            assert killed.poll() is None
            time.sleep(0.1)
        killed.kill()
        assert killed.stdout.read() == b""  # at its end when every process that inherited it has ended
    before = {task.label: store.run(task).rows() for task in tasks}
    assert max(len(rows) for rows in before.values()) < 300
    assert not any(store.has(task) for task in tasks)
    quick = [Counted(f"t{i}", steps=300) for i in range(3)]
    failures, _ = carry(quick, store, Here())
    assert failures == {}
    for task in tasks:
        rows = store.run(task).rows()
        assert rows[: len(before[task.label])] == before[task.label]
        assert [row["step"] for row in rows] == list(range(300))
