"""Networks to measure: runs, files of weights, the original's checkpoints, functions that build one."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deep.measured import SMALL, trained
from lowland.deep import Control, Interrupted, Place, TrainConfig, launch
from lowland.deep.loading import load_subject
from lowland.deep.losses import cross_entropy
from lowland.deep.models import build_model
from lowland.deep.several import load_subjects
from lowland.deep.subject import SubjectOptions, pick_parameters
from lowland.errors import InputError
from lowland.runs import Run


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "one", sam_rho=0.1, p_label_noise=0.2)


CPU = {"device": "cpu"}


def test_a_run_comes_with_its_weights_its_data_and_its_noise(run_path) -> None:
    subject = load_subject(str(run_path), SubjectOptions(**CPU))
    assert subject.name == "one"
    assert subject.run is not None
    assert subject.config is not None
    assert subject.config.sam_rho == 0.1
    assert (subject.train.targets != subject.train.clean_targets).any()
    assert not subject.model.training
    assert all(p.requires_grad for p in subject.model.parameters())
    with torch.no_grad():
        wrong = subject.outputs(subject.test.inputs).argmax(1) != subject.test.targets
    row = Run.open(run_path).summary["last"]
    assert wrong.double().mean().item() == pytest.approx(row["test_error"])


def test_the_kinds_of_a_run_have_different_weights(run_path) -> None:
    last = load_subject(str(run_path), SubjectOptions(**CPU))
    averaged = load_subject(str(run_path), SubjectOptions(kind="swa_last", dtype="float64", **CPU))
    pairs = zip(last.model.parameters(), averaged.model.parameters(), strict=True)
    assert not all(torch.allclose(a.double(), b) for a, b in pairs)
    assert averaged.kind == "swa_last"
    assert averaged.outputs(averaged.test.inputs[:2]).dtype == torch.float64


def test_weights_of_ours_and_of_the_original_are_read_from_files(run_path, tmp_path) -> None:
    subject = load_subject(str(run_path), SubjectOptions(**CPU))
    state = subject.model.state_dict()
    torch.save({"last": state, "best": {n: t + 1 for n, t in state.items()}}, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    options = {"model": "fc", "model_width": 8, "dataset": "digits", **CPU}
    for name, kind, shift in (("a.pth", "last", 0), ("a.pth", "best", 1), ("b.safetensors", "last", 0)):
        found = load_subject(str(tmp_path / name), SubjectOptions(kind=kind, **options))
        assert all(torch.equal(t, state[n] + shift) for n, t in found.model.state_dict().items())
        assert found.run is None
        assert len(found.train) > 1000


@pytest.mark.parametrize("name", ["resnet34", "wrn28", "vgg16"])
def test_two_class_checkpoints_of_the_original_with_two_outputs_are_read(tmp_path, name) -> None:
    data = own_data(
        tmp_path / "d.npz",
        x=np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32),
        y=np.array([0, 1, 1, 0]),
        x_test=None,
        y_test=None,
    )
    torch.manual_seed(0)
    state = build_model(name, num_classes=3, model_width=1).state_dict()
    for tensor in list(state)[-2:]:  # the last layer, cut to two rows
        state[tensor] = state[tensor][:2]
    torch.save({"last": state}, tmp_path / "original.pth")
    options = SubjectOptions(data=str(data), model=name, model_width=1, **CPU)
    subject = load_subject(str(tmp_path / "original.pth"), options)
    outputs = subject.outputs(subject.train.inputs)
    assert outputs.shape == (4, 2)
    difference = (outputs[:, 1] - outputs[:, 0]) * (2 * subject.train.targets - 1)
    torch.testing.assert_close(cross_entropy(outputs, subject.train.targets), (1 + (-difference).exp()).log())


def test_the_activation_of_a_file_of_weights_is_asked_for(tmp_path) -> None:
    torch.manual_seed(0)
    shape = {"num_classes": 10, "model_width": 2, "image_shape": (1, 32, 32)}
    model = build_model("resnet_tiny_gn", activation="softplus2", **shape)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = {"model": "resnet_tiny_gn", "model_width": 2, "dataset": "digits", **CPU}
    soft = load_subject(str(tmp_path / "w.safetensors"), SubjectOptions(activation="softplus2", **options))
    hard = load_subject(str(tmp_path / "w.safetensors"), SubjectOptions(**options))
    x = soft.test.inputs[:8]
    assert x.shape[1:] == (1, 32, 32)
    assert not torch.allclose(soft.outputs(x), hard.outputs(x))
    assert [type(m) for m in soft.model.modules()] == [type(m) for m in model.modules()]


BUILDER = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def nothing():
    return 3
"""


@pytest.fixture
def builder(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    yield "mynets:net"
    sys.modules.pop("mynets", None)


def own_data(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((20, 3, 2, 2)).astype(np.float32),
        "y": rng.integers(0, 3, 20),
        "x_test": rng.integers(0, 255, (8, 3, 2, 2)).astype(np.uint8),
        "y_test": rng.integers(0, 3, 8),
    }
    arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path


def test_a_function_builds_the_network_for_ones_own_data(builder, tmp_path) -> None:
    data = own_data(tmp_path / "d.npz")
    subject = load_subject(builder, SubjectOptions(data=str(data), **CPU))
    assert subject.outputs(subject.train.inputs).shape == (20, 3)
    assert (len(subject.train), len(subject.test)) == (20, 8)
    torch.testing.assert_close(
        subject.outputs(subject.test.inputs),
        subject.model(subject.test.inputs.float() / 255),
    )
    tensors = {"x": subject.train.inputs, "y": subject.train.targets}
    save_file(tensors, tmp_path / "d.safetensors")
    again = load_subject(builder, SubjectOptions(data=str(tmp_path / "d.safetensors"), **CPU))
    assert torch.equal(again.train.inputs, subject.train.inputs[again.train.indices])
    with pytest.raises(InputError, match="must have test examples, got none"):
        again.split("test")
    save_file({n: t + 1 for n, t in subject.model.state_dict().items()}, tmp_path / "w.safetensors")
    moved = load_subject(
        str(tmp_path / "w.safetensors"), SubjectOptions(model=builder, data=str(data), **CPU)
    )
    assert torch.equal(moved.model[1].bias, subject.model[1].bias + 1)


def test_a_run_can_be_measured_on_other_data(run_path, tmp_path) -> None:
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    data = own_data(tmp_path / "d.npz", x=images, y=np.arange(4), x_test=None, y_test=None)
    subject = load_subject(str(run_path), SubjectOptions(data=str(data), **CPU))
    assert len(subject.train) == 4
    assert subject.outputs(subject.train.inputs).shape == (4, 10)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", {}, "a run directory, a file of weights or package.module:function is needed"),
        ("RUN", {"model": "fc"}, "model must be left out for a run, which says it itself, got fc"),
        ("RUN", {"activation": "softplus2"}, "activation must be left out for a run"),
        ("RUN", {"n_layers": 2}, "n_layers must be left out for a run"),
        ("RUN", {"device": "abacus"}, "device must be one of this machine's"),
        ("FILE", {}, "which needs --model, got none"),
        ("FILE", {"model": "fc"}, "needs --dataset or --data to be measured on"),
        ("FILE", {"model": "fc", "dataset": "digits"}, "must hold this model's weights, but differs in"),
        (
            "FILE",
            {"model": "mynets:net", "n_layers": 2},
            "n_layers must be left out for a network of",
        ),
        ("FILE", {"model": "fc", "model_arg": ("a=1",)}, "model_arg must be left out for a network of ours"),
        ("mynets:net", {}, "needs --dataset or --data"),
        ("mynets:none", {"dataset": "digits"}, "must name a function, but mynets has no function 'none'"),
        ("nomodule:net", {"dataset": "digits"}, "must name a module that can be imported"),
        ("mynets:nothing", {"dataset": "digits"}, "must return a torch.nn.Module, got int"),
        (
            "torch.nn:Linear",
            {"dataset": "digits"},
            "must take its arguments, none: missing a required",
        ),
        ("torch.nn:Identity", {"dataset": "digits"}, "must return a network with parameters, got none"),
        ("mynets:net", {"dataset": "digits", "kind": "best"}, "kind must be left out for mynets:net"),
        ("mynets:net", {"model_width": 3, "dataset": "digits"}, "model_width must be left out for"),
        ("mynets:net", {"data": "d.npz", "dataset": "digits"}, "either data or dataset may be given"),
        ("mynets:net", {"data": "none.npz"}, "data must be a folder of images or Parquet files, .*none.npz"),
        ("mynets:net", {"data": "mynets.py"}, "data must be a folder of images"),
        ("mynets:net", {"data": "no_y.npz"}, "no_y.npz must hold y, it holds x"),
        ("mynets:net", {"data": "short.npz"}, "must have as many of each, got 20 of inputs, 3 of targets"),
        ("mynets:net", {"data": "float.npz"}, "targets of .*float.npz must be of one kind in all parts"),
    ],
)
@pytest.mark.usefixtures("builder")
def test_wrong_sources_are_refused_in_a_sentence(run_path, tmp_path, source, options, message) -> None:
    subject = load_subject(str(run_path), SubjectOptions(**CPU))
    save_file(subject.model.state_dict(), tmp_path / "weights.safetensors")
    own_data(tmp_path / "d.npz")
    own_data(tmp_path / "no_y.npz", y=None, x_test=None, y_test=None)
    own_data(tmp_path / "short.npz", y=np.arange(3))
    own_data(tmp_path / "float.npz", y=np.linspace(0, 1, 20))
    if "data" in options:
        options = options | {"data": str(tmp_path / options["data"])}
    source = {"RUN": str(run_path), "FILE": "weights.safetensors"}.get(source, source)
    with pytest.raises(InputError, match=message) as error:
        load_subject(source, SubjectOptions(**{**CPU, **options}))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("builder")
def test_options_go_to_the_networks_that_read_them(run_path, tmp_path) -> None:
    state = load_subject(str(run_path), SubjectOptions(**CPU)).model.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    sources = [str(run_path), str(tmp_path / "weights.safetensors")]
    of_file = {"model": "fc", "model_width": 8, "dataset": "digits", **CPU}
    for order in (sources, sources[::-1]):
        found = {s.name: s for s in load_subjects(order, SubjectOptions(kind="last", **of_file))}
        for name, tensor in found["weights.safetensors"].model.state_dict().items():
            assert torch.equal(tensor, found["one"].model.state_dict()[name])
    no_test = {"x_test": None, "y_test": None}
    data = own_data(tmp_path / "d.npz", x=np.zeros((4, 1, 8, 8), np.uint8), y=np.arange(4), **no_test)
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def wide(num_classes, width=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 4))\n"
    )
    options = SubjectOptions(data=str(data), model_arg=("width=5",), kind="swa_last", **CPU)
    run, built = load_subjects([str(run_path), "mynets:wide"], options)
    assert built.model[1].out_features == 5
    assert (run.kind, built.kind) == ("swa_last", "last")


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (("RUN", "RUN"), {"model": "fc"}, "model must be left out for a run, which says it itself, got fc"),
        (("RUN", "mynets:net"), {"model_width": 3}, "model_width must be left out for"),
        (("RUN", "FILE"), {"model": "fc", "model_arg": ("a=1",)}, "model_arg must be left out for a "),
        (("RUN", "FILE"), {"model": "mynets:net", "n_layers": 2}, "n_layers must be left out for a "),
        (("RUN", "FILE"), {}, "which needs --model, got none"),
        (("mynets:net", "mynets:net"), {"kind": "best"}, "kind must be left out for mynets:net"),
    ],
)
@pytest.mark.usefixtures("builder")
def test_an_option_that_none_of_several_networks_reads_is_refused(
    run_path, tmp_path, sources, options, message
) -> None:
    save_file(
        load_subject(str(run_path), SubjectOptions(**CPU)).model.state_dict(), tmp_path / "w.safetensors"
    )
    paths = {"RUN": str(run_path), "FILE": str(tmp_path / "w.safetensors")}
    with pytest.raises(InputError, match=message):
        load_subjects([paths.get(s, s) for s in sources], SubjectOptions(dataset="digits", **CPU, **options))


def test_unfinished_runs_and_those_of_other_commands_are_refused(run_path, tmp_path) -> None:
    other = Run.create(tmp_path / "other", {"command": "diagonal"}, {})
    with pytest.raises(InputError, match="must be a run of lowland train, got one of 'diagonal'"):
        load_subject(str(other.path), SubjectOptions(**CPU))
    begun = Run.create(tmp_path / "begun", Run.open(run_path).config, {})
    with pytest.raises(InputError, match=r"must have weights, but has neither model\.safetensors"):
        load_subject(str(begun.path), SubjectOptions(**CPU))


def test_parameters_are_picked_by_their_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    assert list(pick_parameters(model, None)) == ["0.weight", "0.bias", "1.weight"]
    assert list(pick_parameters(model, r"^1\.|0.b")) == ["0.bias", "1.weight"]
    with pytest.raises(InputError, match="layers must match a parameter's name"):
        pick_parameters(model, "conv")
    with pytest.raises(InputError, match="layers must be a regular expression"):
        pick_parameters(model, "(")


@pytest.mark.parametrize(
    ("kind", "prefix"), [("last", "model."), ("swa_last", "average."), ("best", "best:best.")]
)
def test_a_run_that_has_not_ended_is_measured_at_its_checkpoint(tmp_path, kind, prefix) -> None:
    config = TrainConfig(**{**SMALL, "epochs": 3, "eval_iter_freq": 4})
    asked = iter(range(99))
    with pytest.raises(Interrupted):
        launch(config, tmp_path / "x", Place("cpu"), Control(should_stop=lambda: next(asked) == 6))
    subject = load_subject(str(tmp_path / "x"), SubjectOptions(kind=kind, **CPU))
    stored = load_file(tmp_path / "x" / "checkpoint" / "state.safetensors")
    own = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    found = subject.model.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    with pytest.raises(InputError, match=r"there is no .*model\.safetensors"):
        launch(replace(config, model_path=str(tmp_path / "x")), tmp_path / "y", Place("cpu"), Control())
