"""A training state in a file: all of it, whole or refused."""

import errno
import json
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import lowland.deep.tensors
from full_disk import files_of_at_most
from lowland.deep import TrainState
from lowland.deep.checkpoint import load_checkpoint, save_checkpoint
from lowland.deep.measuring import measure
from lowland.deep.tensors import write_tensors
from lowland.errors import InputError

from .room import copied, make_data, make_state, run_steps, same_bits

KINDS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd without momentum": {"optimizer_options": ("momentum=0",)},
    "adamw": {"optimizer": "adamw", "lr_max": 0.01},
    "previous batch": {"sam_rho": 0.1, "sam_use_prev_batch": True},
    "dropout": {"droprate": 0.5, "sam_rho": 0.1},
    "bf16": {"half_prec": "bf16"},
    "fp16": {"half_prec": "fp16"},
}


def advanced(**options: Any) -> TrainState:
    """A state in its second epoch, after an evaluation, with fewer points."""
    state = make_state(make_data(flipped=0.3), **options)
    run_steps(state, 5)
    measure(state, full=True)
    state.next_epoch()
    state.keep(torch.arange(4, 36))
    run_steps(state, 2)
    return state


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    tensors = {f"model {k}": t for k, t in copied(state.model).items()}
    tensors |= {f"average {k}": t for k, t in copied(state.average.model).items()}
    tensors |= {"sums": state.sums, "kept": state.kept}
    tensors |= {f"{kind} {k}": t for kind, (_, best) in state.best.items() for k, t in best.items()}
    for i, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {i} {k}": torch.as_tensor(v) for k, v in entries.items() if v is not None}
    numbers = [state.epoch, state.iteration, state.steps, state.seen, *(e for e, _ in state.best.values())]
    return tensors | {"numbers": torch.tensor(numbers)}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_loaded_state_is_the_saved_one_and_goes_on_identically(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "x.safetensors"
    state = advanced(**options)
    save_checkpoint(path, state, rows=3, seconds=1.5)
    other = make_state(make_data(flipped=0.3), **options)
    assert load_checkpoint(path, other) == {"rows": 3, "seconds": 1.5}
    assert same_bits(everything(other), everything(state))
    assert torch.equal(other.train.indices, state.train.indices)
    run_steps(state, 4)
    run_steps(other, 4)
    assert same_bits(everything(other), everything(state))
    assert measure(other, full=True) == measure(state, full=True)


def test_the_scale_of_half_precision_is_kept(tmp_path: Path) -> None:
    state = make_state(half_prec="fp16")
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 128.0, "_growth_tracker": 7})
    run_steps(state, 1)
    save_checkpoint(tmp_path / "x", state)
    other = make_state(half_prec="fp16")
    load_checkpoint(tmp_path / "x", other)
    assert other.scaler.state_dict() == state.scaler.state_dict()


def test_saving_changes_nothing(tmp_path: Path) -> None:
    first, second = advanced(), advanced()
    save_checkpoint(tmp_path / "x", first)
    run_steps(first, 3)
    run_steps(second, 3)
    assert same_bits(everything(first), everything(second))


def test_a_loaded_state_shares_no_memory_with_the_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", advanced())
    state = make_state()
    load_checkpoint(tmp_path / "x", state)
    before = copied(state.model)
    (tmp_path / "x").write_bytes(bytes((tmp_path / "x").stat().st_size))
    assert same_bits(copied(state.model), before)


def refused(path: Path, message: str = "", **options: Any) -> None:
    with pytest.raises(InputError, match=f"{path} must be .*{message}"):
        load_checkpoint(path, make_state(**options))


def test_a_checkpoint_cut_off_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, advanced())
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 1, max(1, len(whole) // 30)), 7, 8, 9, len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path)


def rewritten(path: Path, *, without: str | None = None, **changed: Any) -> None:
    """The checkpoint again with a right checksum, but with other values in its header or without a tensor."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()["state"])
    values |= changed
    tensors = {name: t for name, t in tensors.items() if without is None or not name.startswith(without)}
    write_tensors(path, tensors, {"state": json.dumps(values)})


@pytest.mark.parametrize("without", ["model.", "average.", "optimizer.", "sums", "kept", "best:best."])
def test_a_checkpoint_without_one_of_its_parts_is_refused_by_name(tmp_path: Path, without: str) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, advanced(optimizer="adamw"))
    rewritten(path, without=without)
    refused(path, optimizer="adamw")


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 1},
        {"format": None},
        {"best": []},
        {"best": {"best": "low"}},
        {"optimizer": {"x.y": 1}},
        {"epoch": "one"},
        {"iteration": -1},
        {"seen": None},
        {"scaler": 3},
        {"lr": "high"},
        {"progress": []},
        {"config": None},
        {"config": {"seed": "one"}},
    ],
)
def test_a_checkpoint_with_a_wrong_value_is_refused_by_name(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, advanced())
    rewritten(path, **changed)
    refused(path)


@pytest.mark.parametrize("part", ["header", "data"])
def test_a_checkpoint_of_which_one_bit_is_another_is_refused(tmp_path: Path, part: str) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, advanced())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    start, end = (0, header) if part == "header" else (header, len(whole))
    state = make_state()
    for bit in random.Random(0).sample(range(8 * start, 8 * end), 80):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"^{path} must be "):
            load_checkpoint(path, state)


def test_a_checkpoint_without_a_checksum_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", advanced())
    with safe_open(tmp_path / "x", framework="pt") as file:
        values = file.metadata()["state"]
    save_file(load_file(tmp_path / "x"), tmp_path / "x", {"state": values})
    refused(tmp_path / "x", "with a checksum")


def test_a_checkpoint_of_another_config_is_refused_naming_every_option_that_differs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", advanced())
    message = r"of another epochs \(2 there, 5 here\), seed \(0 there, 4 here\)\.$"
    refused(tmp_path / "x", message, epochs=5, seed=4)


def test_a_checkpoint_of_another_network_or_none_at_all_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", advanced())
    refused(tmp_path / "x", model_width=9)
    save_file({"a": torch.zeros(2)}, tmp_path / "y")
    refused(tmp_path / "y")
    refused(tmp_path / "none")


def test_the_reason_is_one_line(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", advanced())
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "x", make_state(model_width=9))
    assert "\n" not in str(caught.value)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writing stops with a part of the file written."""

    def fails(tensors: Any, path: Path, metadata: Any = None) -> None:  # noqa: ARG001
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lowland.deep.tensors, "save_file", fails)
        yield


def test_a_full_disk_leaves_the_former_checkpoint_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, advanced(), rows=1)
    before = path.read_bytes()
    with full_disk(monkeypatch), pytest.raises(OSError, match="No space"):
        save_checkpoint(path, make_state(), rows=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_really_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    with files_of_at_most(5000):
        try:
            write_tensors(path, {"a": torch.ones(9999)})
        except (OSError, SafetensorError) as error:
            found: Exception = error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert isinstance(found, OSError)


def test_tensors_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path / "x", {"t": base.t(), "row": base[1], "grad": base.clone().requires_grad_()})
    found = load_file(tmp_path / "x")
    assert torch.equal(found["t"], base.t())
    assert torch.equal(found["row"], base[1])
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) & stat.S_IRUSR
