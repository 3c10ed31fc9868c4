"""The measures of a trained network are those of the library, and are kept."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from deep.measured import same, trained
from lowland.deep.flatness import FlatnessConfig
from lowland.deep.loading import load_subject
from lowland.deep.measures import measures
from lowland.deep.records import MeasureRow
from lowland.deep.subject import SubjectOptions
from lowland.errors import InputError
from lowland.runs import read_lines
from lowland.runs.lines import append_line
from lowland.sharpness import (
    AutoPGD,
    ProjectedAscent,
    average_case,
    empirical_fisher,
    feature_rank,
    gradient_norms,
    hessian_eigenvalues,
    hessian_trace,
    knn_error,
    normalized_logits,
    one_step_sharpness,
    suboptimality,
    worst_case,
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    path = trained(tmp_path_factory.mktemp("runs") / "one", sam_rho=0.1)
    return load_subject(str(path), SubjectOptions(device="cpu", dtype="float64"))


def taken(subject, known=(), **options):
    searched, grouped = {"worst-case", "suboptimality"}, {"one-step", "gradient-norm"}
    asked, small = set(options.get("measure", ("worst-case",))), {"n_eval": 24}
    small |= {"steps": 3} if asked & searched else {}
    small |= {"m": (8,)} if asked & (searched | grouped) else {}
    small |= {"rho": (0.1,)} if asked & (searched | {"one-step", "average-case"}) else {}
    config = FlatnessConfig(**small | options)
    return measures(subject, config, known=known).rows


def direct(subject, n=24, *, logit_norm=False, split="train"):
    """The loss written out, its parameters and its batch."""
    part = subject.train if split == "train" else subject.test
    x, y = (part.inputs[:n].float() / 255).double(), part.targets[:n]

    def loss(x, y):
        out = subject.model(x)
        out = normalized_logits(out) if logit_norm else out
        return F.cross_entropy(out, y, reduction="none"), {"error": out.argmax(1) != y}

    return loss, dict(subject.model.named_parameters()), (x, y)


STEPS = AutoPGD(steps=3)
OPTIONS = {
    "plain": ({}, {"search": STEPS}),
    "all of it": (
        {
            "norm": "linf",
            "scaling": "element",
            "search": "projected",
            "steps": 4,
            "step_size": 0.3,
            "schedule": "quarters",
            "restarts": 2,
            "seed": 5,
        },
        {
            "norm": "linf",
            "scaling": "element",
            "search": ProjectedAscent(4, 0.3, schedule="quarters"),
            "restarts": 2,
            "seed": 5,
        },
    ),
    "raw": ({"search": "projected", "direction": "raw"}, {"search": ProjectedAscent(3, direction="raw")}),
    "auto": ({"search": "auto", "scaling": "filter"}, {"search": STEPS, "scaling": "filter"}),
    "longer": ({"longer": 7}, {"search": STEPS, "longer": AutoPGD(7)}),
    "transfer": ({"batch_transfer": True}, {"search": STEPS, "transfer": True}),
    "loop": ({"engine": "loop"}, {"search": STEPS}),
}


@pytest.mark.parametrize(("options", "given"), OPTIONS.values(), ids=OPTIONS)
def test_the_worst_case_is_that_of_the_library(subject, options, given) -> None:
    loss, params, batch = direct(subject)
    (row,) = taken(subject, **options)
    found = worst_case(loss, params, batch, rho=0.1, m=8, **given)
    assert row["value"] == pytest.approx(found.value, rel=1e-9)
    assert row["stderr"] == pytest.approx(found.stderr, rel=1e-9)
    assert row["error_rise"] == pytest.approx(found.extras["error"], abs=1e-12)
    assert found.settings.items() <= (row | {"climbed": "the loss"}).items()


def test_split_logits_and_layers_are_what_is_asked_for(subject) -> None:
    loss, params, batch = direct(subject, logit_norm=True, split="test")
    last = {name: p for name, p in params.items() if name in list(params)[-2:]}
    (row,) = taken(subject, split="test", logit_norm=True, layers="|".join(last))
    assert row["value"] == pytest.approx(worst_case(loss, last, batch, rho=0.1, m=8, search=STEPS).value)
    assert (row["split"], row["logit_norm"]) == ("test", True)
    assert row["layers"] == "|".join(last)


def test_the_norm_of_all_layers_divides_where_the_original_is_asked_for(subject) -> None:
    loss, params, batch = direct(subject)
    last = dict(list(params.items())[-2:])
    (row,) = taken(subject, layers="|".join(last), search="projected", direction="whole")
    (own,) = taken(subject, layers="|".join(last), search="projected")
    search = ProjectedAscent(3, direction="whole")
    others = [p for name, p in params.items() if name not in last]
    found = worst_case(loss, last, batch, rho=0.1, m=8, search=search, beside=others)
    assert row["value"] == pytest.approx(found.value, rel=1e-9)
    assert row["direction"] == "whole"
    assert row["value"] < own["value"]


def test_random_targets_are_other_classes_and_change_where_is_looked(subject) -> None:
    (row,) = taken(subject, random_targets=True, steps=10)
    (plain,) = taken(subject, steps=10)
    assert 0 < row["value"] < plain["value"]
    assert row["climbed"] == "random targets"
    assert taken(subject, random_targets=True, steps=10, seed=1)[0]["value"] != row["value"]


def test_other_measures_are_those_of_the_library(subject) -> None:
    loss, params, batch = direct(subject)

    def mean(x, y):
        return loss(x, y)[0]

    names = ("average-case", "one-step", "suboptimality", "gradient-norm", "eigenvalues", "trace", "density")
    rows = {row["measure"]: row for row in taken(subject, measure=names, samples=8, products=12, k=3)}
    average = average_case(loss, params, batch, rho=0.1, samples=8)
    assert rows["average case"]["value"] == pytest.approx(average.value, rel=1e-6)
    one = one_step_sharpness(loss, params, batch, rho=0.1, m=8)
    assert rows["one-step sharpness"]["value"] == pytest.approx(one.value, rel=1e-9)
    factor = suboptimality(loss, params, batch, rho=0.1, m=8, search=STEPS)
    assert rows["suboptimality factor"]["value"] == pytest.approx(factor.value, rel=1e-9)
    norms = gradient_norms(loss, params, batch, m=8)
    assert rows["gradient norm"]["value"] == pytest.approx(norms.value, rel=1e-9)
    assert rows["gradient norm"]["median"] == pytest.approx(norms.groups.median().item(), rel=1e-9)
    top = hessian_eigenvalues(mean, params, batch, k=3)
    low = hessian_eigenvalues(mean, params, batch, end="smallest")
    row = rows["largest eigenvalue"]
    assert row["eigenvalues"] == pytest.approx(top.values, rel=1e-2)
    assert row["smallest"] == pytest.approx(low.value, rel=0.05, abs=1e-6)
    edge = row["gradient_norm"] / 0.2 * (math.sqrt(1 + 0.8 / row["eta"] / row["gradient_norm"]) - 1)
    assert row["edge"] == pytest.approx(edge)
    trace = hessian_trace(mean, params, batch, products=12)
    assert rows["trace"]["value"] == pytest.approx(trace.value, rel=1e-6)
    weights = sum(p.numel() for p in params.values())
    assert rows["mean eigenvalue"]["value"] == pytest.approx(trace.value / weights, rel=1.0)
    assert measures(subject, FlatnessConfig(measure=("density",), n_eval=8, products=4)).densities
    gauss = taken(subject, measure=("trace",), matrix="gauss-newton", products=12)[0]
    assert gauss["matrix"] == "gauss-newton"
    fisher = taken(subject, measure=("trace",), matrix="empirical-fisher", products=12)[0]
    matrix = empirical_fisher(lambda x, y: loss(x, y)[0])
    assert fisher["value"] == pytest.approx(hessian_trace(matrix, params, batch, products=12).value)
    assert gauss["value"] != rows["trace"]["value"]


def test_measures_of_features_are_those_of_the_library(subject) -> None:
    layers = [name for name, part in subject.model.named_modules() if isinstance(part, torch.nn.Linear)]
    options = {"n_eval": 40, "feature_layer": layers[0], "neighbours": 3}
    names = ("active-relus", "feature-rank", "knn-error")
    rows = {row["measure"]: row for row in taken(subject, measure=names, **options)}
    kept = {}
    linear = dict(subject.model.named_modules())[layers[0]]
    handle = linear.register_forward_hook(lambda _, __, out: kept.setdefault("out", out.detach()))
    found = {}
    for split in ("train", "test"):
        kept.clear()
        subject.outputs(getattr(subject, split).inputs[:40])
        found[split] = kept["out"]
    handle.remove()
    assert rows["active ReLUs"]["value"] == pytest.approx((found["train"] > 0).double().mean().item())
    assert rows["feature rank"]["value"] == feature_rank(found["train"])
    pairs = [(found[split], getattr(subject, split).targets[:40]) for split in ("train", "test")]
    assert rows["kNN error"]["value"] == knn_error(*pairs, k=3)
    assert rows["kNN error"]["neighbours"] == 3
    assert rows["feature rank"]["layer"] == layers[0]


def test_a_standard_error_that_is_asked_for_is_reached(subject) -> None:
    (few,) = taken(subject, measure=("average-case",), samples=4)
    (more,) = taken(subject, measure=("average-case",), samples=4, stderr=few["stderr"] / 2)
    assert more["stderr"] <= few["stderr"] / 2
    assert more["samples"] > few["samples"]
    (uniform,) = taken(subject, measure=("average-case",), samples=4, distribution="uniform")
    assert uniform["value"] != few["value"]


def test_half_precision_is_close_and_said(subject) -> None:
    plain = load_subject(str(subject.run.path), SubjectOptions(device="cpu"))
    (exact,), (half,) = taken(plain), taken(plain, half_prec="bf16")
    assert (exact["half_prec"], half["half_prec"]) == ("no", "bf16")
    assert half["value"] == pytest.approx(exact["value"], rel=0.2)
    assert half["value"] != exact["value"]


def test_groups_larger_than_a_part_are_run_in_parts(subject) -> None:
    loss, params, batch = direct(subject, 600)
    (row,) = taken(subject, n_eval=600, m=(600,), steps=2)
    found = worst_case(loss, params, batch, rho=0.1, search=AutoPGD(2))
    assert row["value"] == pytest.approx(found.value, rel=1e-9)


def test_rows_are_json_and_known_ones_are_not_measured_again(subject) -> None:
    before = {name: t.clone() for name, t in subject.model.state_dict().items()}
    options = {"rho": (0.05, 0.1), "m": (1, 8), "measure": ("worst-case", "one-step", "trace"), "products": 6}
    rows = [json.loads(json.dumps(row)) for row in taken(subject, **options)]
    assert len(rows) == 9
    marked = [row | {"value": -1.0} for row in rows]
    assert [row["value"] for row in taken(subject, known=marked, **options)] == [-1.0] * 9
    changed = taken(subject, known=marked, **{**options, "rho": (0.05, 0.2)})
    assert sum(row["value"] == -1.0 for row in changed) == 5
    worst, trace = {"rho": (0.05, 0.1), "m": (1, 8)}, {"measure": ("trace",), "products": 6, "seed": 3}
    for other in ({"restarts": 2}, {"steps": 4}, {"n_eval": 16}, {"logit_norm": True}, {"layers": "weight"}):
        again = taken(subject, known=marked, **worst, **other) + taken(subject, known=marked, **trace)
        assert all(row["value"] != -1.0 for row in again)
    assert same(subject.model, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": ()}, "rho must be given at least one value, got none"),
        ({"rho": (0.1, -1.0)}, "rho must be positive and finite"),
        ({"m": (0,)}, "m must be positive, got 0"),
        ({"n_eval": 0}, "n_eval must be positive, got 0"),
        ({"k": 0}, "k must be positive, got 0"),
        ({"restarts": 0}, "restarts must be positive, got 0"),
        ({"step_size": 0.5}, "step_size must be left out without --search projected"),
        ({"measure": ("trace",), "norm": "linf"}, "norm must be left out without --measure worst-case"),
        ({"measure": ("knn-error",)}, "measure knn-error needs feature_layer, the name of a layer, got none"),
        (
            {"feature_layer": "x"},
            "feature_layer must be left out without --measure feature-rank or knn-error",
        ),
        ({"measure": ("feature-rank",), "feature_layer": "x"}, "layer must be the name of one of"),
        ({"search": "projected", "direction": "whole"}, "direction whole needs layers"),
        (
            {"search": "projected", "direction": "whole", "layers": ".", "norm": "linf"},
            "direction 'whole' is of an l2 norm",
        ),
        ({"direction": "whole", "layers": "."}, "direction must be left out without --search projected"),
        ({"longer": 3}, "longer must be more than the 3 steps, got 3."),
        ({"steps": 0}, "steps must be a positive whole number, got 0"),
        ({"layers": "nothing"}, "layers must match a parameter's name"),
        ({"measure": ("average-case",), "samples": 1}, "samples must be from 2 to max_samples"),
        ({"batch_transfer": True, "m": (24,)}, "transfer needs two or more groups"),
    ],
)
def test_wrong_options_are_refused(subject, options, message) -> None:
    with pytest.raises(InputError, match=message):
        taken(subject, **options)


def test_what_a_diverged_network_gives_can_be_read_again(subject, tmp_path) -> None:
    diverged = load_subject(str(subject.run.path), SubjectOptions(device="cpu"))
    with torch.no_grad():
        next(diverged.model.parameters()).fill_(math.nan)
    (row,) = taken(diverged, restarts=2, longer=4)
    append_line(tmp_path / "sharpness.jsonl", row)
    (again,) = read_lines(tmp_path / "sharpness.jsonl", MeasureRow)
    assert (again["value"], again["longer"], again["starts"]) == (None, None, [None, None])


def test_torch_is_left_as_it_was(subject) -> None:
    state = torch.get_rng_state()
    taken(subject, measure=("worst-case", "average-case", "eigenvalues"), restarts=2, random_targets=True)
    assert torch.equal(torch.get_rng_state(), state)
