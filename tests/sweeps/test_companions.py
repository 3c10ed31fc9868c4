"""Runs of a sweep that several processes train together."""

import subprocess

import pytest
from safetensors.torch import load_file

from lowland.deep import Control, Interrupted, Place, TrainConfig, companions, launch
from lowland.errors import InputError
from lowland.sweeps import Here, Store, Training, carried_out

CONFIG = {"dataset": "gaussians_binary", "model": "linear", "dtype": "float64", "sam_rho": 0.1, "m": 50}
CONFIG |= {"epochs": 3, "batch_size": 300}


@pytest.fixture
def started(monkeypatch):
    """The processes that are started."""
    found, start = [], subprocess.Popen

    def noted(command, **options):
        process = start(command, **options)
        if "companions" in " ".join(command):
            found.append(process)
        return process

    monkeypatch.setattr(companions.subprocess, "Popen", noted)
    return found


def weights(task, store):
    return load_file(store.run(task).model_path)


@pytest.mark.slow
def test_run_of_two_processes_is_that_of_one(tmp_path, started):
    task, found = Training(TrainConfig(**CONFIG)), []
    for processes in (1, 2):
        store = Store(tmp_path / str(processes))
        place = Place("cpu", threads=1, processes=processes)
        assert carried_out([task], store, Here(), place=place) == {}
        found.append(weights(task, store))
    assert [process.poll() for process in started] == [0]
    one, two = found
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-10


@pytest.mark.slow
def test_run_stops_with_all_its_processes_and_goes_on_in_one(tmp_path, started):
    config, place = TrainConfig(**CONFIG), Place("cpu", threads=1, processes=2)
    with pytest.raises(Interrupted):
        launch(config, tmp_path / "run", place, Control(should_stop=lambda: True))
    assert [process.poll() for process in started] == [0]
    rows = launch(config, tmp_path / "run", Place("cpu", threads=1), Control())
    assert rows[-1]["step"] == 9


@pytest.mark.slow
def test_process_that_ends_too_early_ends_the_run_in_a_sentence(tmp_path, started):
    def killed():
        started[0].kill()
        return False

    config, place = TrainConfig(**CONFIG), Place("cpu", threads=1, processes=2)
    message = "^all 2 processes of a run must last until it ends, but one has ended: exit code -9$"
    with pytest.raises(InputError, match=message):
        launch(config, tmp_path / "run", place, Control(should_stop=killed))
    rows = launch(config, tmp_path / "run", place, Control())  # with others
    assert rows[-1]["step"] == 9
