"""Weights from files: which are loaded, which are refused, and that nothing in them is run."""

import argparse
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowland.deep.weights import KINDS, load_weights, read_states
from lowland.errors import InputError

from .room import copied, same_bits


def network(seed: int = 0, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


STATES = {kind: copied(network(seed)) for seed, kind in enumerate(KINDS, start=1)}


def four_kinds(path: Path) -> Path:
    tensors = {f"{kind}.{name}": t for kind, state in STATES.items() for name, t in state.items()}
    save_file(tensors, path)
    return path


def assert_loads(path: Path, kind: str, wanted: dict[str, Tensor]) -> None:
    model = network()
    load_weights(model, path, kind=kind)
    assert same_bits(copied(model), wanted)


def assert_refused(path: Path, message: str, *, kind: str = "last", model: nn.Module | None = None) -> None:
    model = model or network()
    before = copied(model)
    with pytest.raises(InputError, match=message):
        load_weights(model, path, kind=kind)
    assert same_bits(copied(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_the_four_kinds_is_had_from_a_run_its_file_and_a_checkpoint_of_the_original(
    tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert_loads(four_kinds(run / "model.safetensors").parent, kind, STATES[kind])
    assert_loads(run / "model.safetensors", kind, STATES[kind])
    torch.save(STATES, tmp_path / "original.pth")
    assert_loads(tmp_path / "original.pth", kind, STATES[kind])


def test_a_plain_state_dict_is_loaded_whatever_its_format(tmp_path: Path) -> None:
    save_file(STATES["best"], tmp_path / "plain.safetensors")
    torch.save(STATES["best"], tmp_path / "plain.pth")
    torch.save(STATES["best"], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("plain.safetensors", "plain.pth", "old.pt"):
        assert_loads(tmp_path / name, "last", STATES["best"])


def test_a_files_states_are_read_by_kind(tmp_path: Path) -> None:
    states = read_states(four_kinds(tmp_path / "x.safetensors"))
    assert states.keys() == set(KINDS)
    assert all(same_bits(states[kind], STATES[kind]) for kind in KINDS)
    save_file(STATES["last"], tmp_path / "plain.safetensors")
    plain = read_states(tmp_path / "plain.safetensors")
    assert plain.keys() == {""}
    assert same_bits(plain[""], STATES["last"])


def test_a_kind_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    torch.save({"last": STATES["last"], "swa_last": STATES["swa_last"], "best": None}, tmp_path / "x.pth")
    assert_refused(
        tmp_path / "x.pth", "must hold the weights 'best', it holds 'last', 'swa_last'", kind="best"
    )


def test_an_unknown_kind_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.pth", "^model_type must be one of last, best", kind="lst")


class Runs:
    """A pickle that would run something."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(
    tmp_path: Path, new_format: bool
) -> None:
    trace = tmp_path / "it ran"
    content = {**STATES, "extra": Runs(trace)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    assert_refused(tmp_path / "x.pth", "must be a checkpoint of tensors only")
    assert not trace.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert trace.exists()  # the file is indeed malicious


class Net(nn.Linear):
    """A network of a user's."""


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (network(), r"torch\.nn\.modules\.container\.Sequential"),
        (Net(2, 2), r"[\w.]*test_weights\.Net"),
        ({"args": argparse.Namespace(lr=0.1), "model": STATES["last"]}, r"argparse\.Namespace"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_whole_module_is_refused_in_a_sentence_of_ours(
    tmp_path: Path, content: Any, name: str, new_format: bool
) -> None:
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    message = "x.pth must be a checkpoint of tensors only: save model.state_dict(), got a pickled object of "
    assert_refused(tmp_path / "x.pth", re.escape(message) + rf"{name}\.$")


WITH_OTHERS: dict[str, Any] = {
    "epoch": 3,
    "optimizer": {"state": {0: {"step": torch.zeros(())}}, "param_groups": [{"lr": 0.1}]},
    "scheduler": {"last_epoch": 3},
}


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("others", [{}, WITH_OTHERS])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_beside_other_things_and_from_wrapped_networks_are_found(
    tmp_path: Path, key: str, others: dict[str, Any], prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in STATES["best"].items()}
    torch.save({key: state, **others}, tmp_path / "x.pt")
    assert_loads(tmp_path / "x.pt", "last", STATES["best"])
    torch.save(state, tmp_path / "y.pt")
    save_file(state, tmp_path / "y.safetensors")
    for name in ("y.pt", "y.safetensors"):
        assert_loads(tmp_path / name, "last", STATES["best"])


def test_a_network_whose_own_names_begin_so_keeps_them(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"module": network()})
    torch.save(wrapped.state_dict(), tmp_path / "x.pt")
    load_weights(wrapped, tmp_path / "x.pt")
    torch.save(nn.ModuleDict({"module": wrapped}).state_dict(), tmp_path / "y.pt")
    assert_refused(tmp_path / "y.pt", "differs in", model=wrapped)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": STATES["last"], "ema": STATES["best"]},
            "got one in each of 'model', 'ema'.",
        ),
        (WITH_OTHERS, "got 'epoch', 'optimizer', 'scheduler', of which none is one."),
    ],
)
def test_weights_that_may_be_anywhere_are_refused_with_the_keys(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    message = "x.pt must hold one state_dict: save model.state_dict() alone, " + message
    assert_refused(tmp_path / "x.pt", re.escape(message) + "$")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 5, None, "weights"])
def test_something_else_in_a_pth_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "must hold a state_dict, got")


def save_safetensors(path: Path) -> None:
    four_kinds(path)


def save_new(path: Path) -> None:
    torch.save(STATES, path)


def save_old(path: Path) -> None:
    torch.save(STATES, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "write"),
    [("x.safetensors", save_safetensors), ("x.pth", save_new), ("old.pth", save_old)],
)
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    model = network()
    before = copied(model)
    for size in [*range(24), *range(24, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"^{path}"):
            load_weights(model, path)
    assert same_bits(copied(model), before)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x02.", b"{}", b"PK\x03\x04" + bytes(60), bytes(99)]
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, f"^{tmp_path / name} must ")


def test_a_missing_file_or_an_empty_directory_is_refused_by_its_path(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.pth", f"there is no {tmp_path / 'none.pth'}")
    assert_refused(tmp_path, f"there is no {tmp_path / 'model.safetensors'}")


def test_another_architecture_is_refused_with_the_first_three_differences(tmp_path: Path) -> None:
    path = four_kinds(tmp_path / "x.safetensors")
    message = (
        r"must hold this model's weights, but differs in 0\.weight \(6x4 needed, 5x4 in the file\), "
        r"0\.bias \(6 needed, 5 in the file\), 1\.weight \(6 needed, 5 in the file\) and 4 more\.$"
    )
    assert_refused(path, message, model=network(width=6))


def test_missing_and_surplus_names_are_differences(tmp_path: Path) -> None:
    state = dict(STATES["last"])
    state["surplus"] = state.pop("2.bias")
    torch.save(state, tmp_path / "x.pth")
    message = r"2\.bias \(2 needed, none in the file\), surplus \(none needed, 2 in the file\)\.$"
    assert_refused(tmp_path / "x.pth", message)


def test_a_scalar_and_no_entry_are_told_apart(tmp_path: Path) -> None:
    state = {name: t for name, t in STATES["last"].items() if name != "1.num_batches_tracked"}
    save_file(state, tmp_path / "x.safetensors")
    assert_refused(tmp_path / "x.safetensors", r"num_batches_tracked \(scalar needed, none in the file\)")


def not_plain(name: str) -> Any:
    """An entry of two times five that weights cannot be copied from."""
    plain = torch.zeros(2, 5)
    kinds: dict[str, Callable[[], Any]] = {
        "sparse": plain.to_sparse,
        "sparse, csr": plain.to_sparse_csr,
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(5), torch.zeros(5)]),
        "without data": lambda: plain.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "torch.complex64": lambda: plain.to(torch.complex64),
        "list": plain.tolist,
    }
    return kinds[name]()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sparse", "sparse"),
        ("sparse, csr", "sparse"),
        ("nested", "sparse"),
        ("without data", "without data"),
        ("quantized", "quantized"),
        ("torch.complex64", "torch.complex64"),
        ("list", "list"),
    ],
)
def test_an_entry_that_cannot_be_copied_from_is_refused_and_the_model_stays_whole(
    tmp_path: Path, name: str, word: str
) -> None:
    torch.save({**STATES["best"], "2.weight": not_plain(name)}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "")
    with pytest.raises(InputError) as caught:
        load_weights(network(), tmp_path / "x.pth")
    refused_whole = "tensors only" in str(caught.value)  # what torch itself does not unpickle
    assert refused_whole or f"2.weight (2x5 needed, {word} in the file)" in str(caught.value)


def test_an_archive_that_declares_more_than_it_has_is_refused_before_it_is_read(tmp_path: Path) -> None:
    torch.save(STATES, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
        bomb.writestr("archive/data/99", bytes(50_000_000))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    assert_refused(tmp_path / "bomb.pth", r"must hold no more than its \d+ bytes, it declares 500\d{5}\.$")


def test_an_archive_that_says_it_is_on_several_disks_is_refused(tmp_path: Path) -> None:
    torch.save(STATES, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    (tmp_path / "x.pth").write_bytes(whole[:-22] + locator + whole[-22:])
    assert_refused(tmp_path / "x.pth", "must be a whole archive of tensors: .*multiple disks")


def test_an_entry_that_is_no_tensor_is_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save({**STATES["last"], "epoch": 5}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "epoch")
