"""``lowland sharpness`` and ``lowland landscape`` as a user meets them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.deep.loading import load_subject
from lowland.deep.subject import SubjectOptions

FEW = ("--n_eval", "32", "--steps", "2", "--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def trained_ones(tmp_path_factory):
    """Two trained runs, a and b."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seed in (("a", 0), ("b", 1)):
        config = TrainConfig(model="fc", model_width=8, epochs=1, seed=seed)
        launch(config, folder / name, Place("cpu", threads=1), Control())
    return folder


@pytest.fixture
def two(run, trained_ones):
    """Runs ``lowland`` in a folder with the two runs."""
    shutil.copytree(trained_ones, ".", dirs_exist_ok=True)
    return run


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_networks_stand_side_by_side_and_numbers_are_kept(two) -> None:
    words = ("sharpness", "a", "b", *FEW, "--rho", "0.05", "0.1", "--m", "1", "16")
    code, out, err = two(*words)
    assert (code, err) == (0, "")
    assert re.search(r"measure +m +ρ +a +b", out)
    assert len(re.findall(r"worst case +(?:1|16) +0\.(?:05|1) +\S+ ± \S+", out)) == 4
    for name in "ab":
        rows = lines(f"{name}/sharpness.jsonl")
        assert [(row["m"], row["rho"]) for row in rows] == [(1, 0.05), (1, 0.1), (16, 0.05), (16, 0.1)]
        wanted = {"network": name, "kind": "last", "measure": "worst case", "norm": "l2", "examples": 32}
        assert wanted.items() <= rows[0].items()
        assert {"value", "stderr", "error_rise", "seed", "dtype", "scaling", "logit_norm"} <= rows[0].keys()
    (drawn,) = Path("runs").glob("sharpness-*/sharpness.png")
    with Image.open(drawn) as picture:
        assert picture.width > 500
    assert drawn.with_suffix(".pdf").exists()
    assert not Path("a/sharpness.png").exists()
    _, again, _ = two(*words)
    assert again == out
    assert len(lines("a/sharpness.jsonl")) == 4
    two(*words, "--kind", "swa_last")
    assert [row["kind"] for row in lines("a/sharpness.jsonl")] == ["last"] * 4 + ["swa_last"] * 4


@pytest.mark.parametrize("command", ["sharpness", "landscape"])
@pytest.mark.parametrize(
    ("shape", "classes", "said"),
    [
        ((3, 9, 8), 2, "a must be given images of 1x8x8, but those of x.npz are 3x9x8."),
        ((1, 8, 8), 11, "a must tell apart all classes of x.npz, which has 11, but its outputs are for 10."),
    ],
)
def test_data_that_a_network_cannot_take_are_refused_and_nothing_is_written(
    two, command, shape, classes, said
) -> None:
    labels = np.arange(classes)
    np.savez("x.npz", x=np.zeros((classes, *shape), np.uint8), y=labels)
    before = sorted(Path("a").rglob("*"))
    assert two(command, "a", "--data", "x.npz", "--device", "cpu") == (2, "", f"lowland: {said}\n")
    assert sorted(Path("a").rglob("*")) == before
    assert not Path("runs").exists()


def test_a_mistake_of_the_program_while_a_network_is_tried_is_no_sentence(two, monkeypatch) -> None:
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("lowland.deep.models.small.FullyConnected.forward", broken)
    with pytest.raises(RuntimeError, match="planted"):
        two("sharpness", "a", *FEW)


def test_other_weights_under_the_same_name_are_measured_again(two) -> None:
    words = ("sharpness", "a", *FEW, "--rho", "0.1", "--m", "16")
    two(*words)
    Path("a/model.safetensors").write_bytes(Path("b/model.safetensors").read_bytes())
    two(*words)
    first, second = lines("a/sharpness.jsonl")
    assert first["value"] != second["value"]
    assert first["weights"] != second["weights"]
    assert first["data"] == "digits"


def test_many_networks_have_a_line_each(two) -> None:
    names = [shutil.copytree("a", f"run{i}") for i in range(5)]
    code, out, _ = two("sharpness", *names, *FEW, "--rho", "0.1", "--m", "16")
    assert code == 0
    assert re.findall(r"worst case +16 +0.1 +(run\d)", out) == names


def test_every_measure_is_printed_and_densities_are_drawn(two) -> None:
    names = "worst-case average-case one-step suboptimality gradient-norm eigenvalues trace density"
    code, out, err = two(
        "sharpness", "a", *FEW, "--rho", "0.1", "--m", "8", "--measure", *names.split(), "--products", "6"
    )
    assert (code, err) == (0, "")
    for title in (
        "worst case",
        "average case",
        "one-step sharpness",
        "suboptimality factor",
        "gradient norm",
        "largest eigenvalue",
        "trace",
        "mean eigenvalue",
    ):
        assert title in out
    assert "λ₁/λ₅" in out
    with Image.open("a/density.png") as picture:
        assert picture.width > 300


def test_weights_without_a_run_are_measured_where_out_says(two) -> None:
    Path("w.safetensors").write_bytes(Path("a/model.safetensors").read_bytes())
    words = ("sharpness", "w.safetensors", *FEW, "--rho", "0.1", "--m", "8", "--model", "fc")
    words += ("--model_width", "8", "--dataset", "digits")
    code, out, _ = two(*words)
    assert code == 0
    assert "picture" not in out
    assert two(*words, "--out", "numbers")[0] == 0
    (row,) = lines("numbers/sharpness.jsonl")
    assert row["network"] == "w.safetensors"
    two("sharpness", "a", *FEW, "--rho", "0.1", "--m", "8")
    assert lines("a/sharpness.jsonl")[0]["error_rise"] == row["error_rise"]


@pytest.mark.parametrize("command", ["sharpness", "landscape"])
def test_a_run_stands_beside_a_file_of_weights_whose_network_is_named(two, command) -> None:
    Path("w.safetensors").write_bytes(Path("a/model.safetensors").read_bytes())
    of_file = ("--model", "fc", "--model_width", "8", "--dataset", "digits")
    few = FEW if command == "sharpness" else ("--n_eval", "32", "--points", "3", "--device", "cpu")
    for sources in (("b", "w.safetensors"), ("w.safetensors", "b")):
        code, out, err = two(command, *sources, *few, *of_file)
        assert (code, err) == (0, "")
        assert "w.safetensors" in out
    code, _, err = two(command, "a", "b", *few, "--model", "fc")
    assert (code, err) == (2, "lowland: model must be left out for a run, which says it itself, got fc.\n")


def test_what_is_measured_comes_with_its_loss_and_its_errors(two) -> None:
    words = ("sharpness", "a", "b", *FEW, "--rho", "0.1", "--m", "16")
    _, out, _ = two(*words)
    table = [line.split() for line in out.splitlines() if line.strip()]
    assert table[1][0] == "loss"
    assert table[2][:2] == ["error", "(%)"]
    for name, loss, error in zip("ab", table[1][1:], table[2][2:], strict=True):
        subject = load_subject(name, SubjectOptions(device="cpu"))
        few = subject.train.head(32)
        with torch.no_grad():
            outputs = subject.outputs(few.inputs)
        wanted = torch.nn.functional.cross_entropy(outputs, few.targets).item()
        assert loss == f"{wanted:.4g}"
        assert error == f"{100 * (outputs.argmax(1) != few.targets).double().mean().item():.1f}"
    assert {row["measure"] for row in lines("a/sharpness.jsonl")} == {"worst case"}


def test_a_line_between_two_networks_is_drawn_and_kept(two) -> None:
    words = ("landscape", "a", "b", "--points", "5", "--n_eval", "50", "--device", "cpu", "--out", "l")
    code, out, err = two(*words)
    assert (code, err) == (0, "")
    assert "barrier" in out
    assert [row["t"] for row in lines("l/metrics.jsonl")] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert {"config.json", "env.json", "line.png", "line.pdf", "summary.json"} <= {
        path.name for path in Path("l").iterdir()
    }
    table = out[out.index("  parameters") :].split("\n", 1)[1]
    drawn = Path("l/line.png").read_bytes()
    Path("l/line.png").unlink()
    again = two(*words)[1]
    assert again.startswith("l is finished already.\npicture: l/line.png\n")
    assert again.endswith(table)
    assert Path("l/line.png").read_bytes() == drawn
    assert "picture" not in two(*words)[1]
    code, out, _ = two("runs", "list", "l")
    assert "(landscape)" in out
    assert two("runs", "show", "l")[0] == 0


def test_a_line_that_was_stopped_goes_on_with_the_rows_that_it_has(two) -> None:
    words = ("landscape", "a", "b", "--points", "5", "--n_eval", "50", "--device", "cpu", "--out", "l")
    two(*words)
    whole = Path("l/metrics.jsonl").read_text()
    first, second, *_ = whole.splitlines(keepends=True)
    marked = first.replace('"train_loss": ', '"train_loss": 1')  # one made again is not
    Path("l/metrics.jsonl").write_text(marked + second + '{"path": "li')
    Path("l/summary.json").unlink()
    assert two(*words)[0] == 0
    assert Path("l/metrics.jsonl").read_text() == whole.replace(first, marked)


def test_a_landscape_of_weights_that_have_changed_is_another_one(two) -> None:
    words = ("landscape", "a", "b", "--points", "3", "--n_eval", "20", "--device", "cpu", "--out", "l")
    two(*words)
    shutil.copy("b/model.safetensors", "a/model.safetensors")
    code, _, err = two(*words)
    assert code == 2
    assert "weights is" in err


def test_a_surface_is_one_page_that_needs_no_network(two) -> None:
    code, out, _ = two("landscape", "a", "--points", "3", "--n_eval", "20", "--device", "cpu", "--out", "p")
    assert code == 0
    assert "interactive: p/surface.html" in out
    page = Path("p/surface.html").read_text(encoding="utf-8")
    assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="http', page)
    assert len(page) > 1_000_000
    with Image.open("p/train_loss.png") as picture:
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sharpness",), "networks must come before the options"),
        (("landscape", "--points", "3"), "networks must come before the options"),
        (("sharpness", "nowhere"), "a run directory, a file of weights or package.module:function is needed"),
        (("sharpness", "a", "a"), "the networks must be different ones, got a twice"),
        (("sharpness", "a", "--rho", "-1"), "rho must be positive and finite"),
        (("sharpness", "a", "--rho", "x"), "--rho must be a number, got 'x'"),
        (("sharpness", "a", "--measure", "flatness"), "--measure must be one of worst-case"),
        (("sharpness", "a", "--m", "0"), "m must be positive, got 0"),
        (("sharpness", "a", "--engine", "fast"), "--engine must be one of auto, loop, batched"),
        (("sharpness", "a", "--threads", "0"), "threads must be positive, got 0"),
        (("sharpness", "a", "--rhos", "1"), "every option must be one that --help lists"),
        (("sharpness", "a", "--layers", "conv"), "layers must match a parameter's name"),
        (("landscape", "a", "b", "--view", "sam"), "view sam is of 1 networks, got 2"),
        (("landscape", "a", "b", "--points", "1"), "points must be at least 2, got 1"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_written(two, words, message) -> None:
    before = _files()
    code, out, err = two(*words)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert _files() == before


def _files():
    return {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.parts[0] != "cache"}


def test_help_lists_the_options(run) -> None:
    for command, option in (("sharpness", "--logit_norm"), ("landscape", "--curve_steps")):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert option in out
