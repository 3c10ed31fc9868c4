"""Every option of a measure changes its numbers or is refused."""

import dataclasses
from typing import Any, get_args

import pytest

from deep.measured import trained
from lowland.deep.flatness import FlatnessConfig, Measure
from lowland.deep.loading import load_subject
from lowland.deep.measures import measures
from lowland.deep.subject import Subject, SubjectOptions
from lowland.errors import InputError

MEASURES = get_args(Measure)
SEARCHED = {"worst-case", "suboptimality"}
LAYER = "_model.1"
BASE: dict[str, Any] = {"n_eval": 24}
OF: dict[str, dict[str, Any]] = {
    "worst-case": {"rho": (0.3,), "m": (8,), "steps": 3},
    "average-case": {"rho": (0.3,), "samples": 4},
    "one-step": {"rho": (0.3,), "m": (8,)},
    "suboptimality": {"rho": (0.3,), "m": (8,), "steps": 3},
    "gradient-norm": {"m": (8,)},
    "trace": {"products": 6},
    "density": {"products": 6},
    "eigenvalues": {"k": 2},
    "feature-rank": {"feature_layer": LAYER},
    "knn-error": {"feature_layer": LAYER, "n_eval": 60},
}
OTHER: dict[str, Any] = {
    "rho": (0.5,),
    "m": (6,),
    "n_eval": 48,
    "split": "test",
    "norm": "linf",
    "scaling": "element",
    "logit_norm": True,
    "layers": "1.weight",
    "search": "projected",
    "steps": 2,
    "longer": 30,
    "step_size": 0.2,
    "direction": "raw",
    "schedule": "quarters",
    "restarts": 3,
    "random_targets": True,
    "batch_transfer": True,
    "distribution": "uniform",
    "samples": 8,
    "stderr": 1e-5,
    "k": 3,
    "matrix": "gauss-newton",
    "products": 9,
    "feature_layer": "_model.0",
    "neighbours": 3,
    "half_prec": "bf16",
    "engine": "loop",
    "seed": 1,
}
PROJECTED: dict[str, Any] = {"search": "projected"}
BESIDE = dict.fromkeys(("step_size", "direction", "schedule"), PROJECTED)
"""What an option needs to be read, where the measure searches."""
SAME = {
    ("engine", None): "both engines find the same",
    ("seed", "eigenvalues"): "they are found to a tolerance from any start",
    ("restarts", "worst-case"): "another start need not find more",
    ("restarts", "suboptimality"): "another start need not find more",
    ("half_prec", "active-relus"): "rounding moves no output across zero here",
    ("half_prec", "feature-rank"): "a whole number",
    ("n_eval", "feature-rank"): "a whole number, at most the width",
    ("split", "feature-rank"): "a whole number, at most the width",
    ("feature_layer", "knn-error"): "ReLUs of what is far apart may vote alike",
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path = trained(tmp_path_factory.mktemp("runs") / "one", sam_rho=0.1)
    return load_subject(str(path), SubjectOptions(device="cpu"))


def numbers(subject: Subject, measure: str, **options: Any) -> list[dict[str, Any]]:
    """What is found, as opposed to what was asked for."""
    found = ("value", "stderr", "longer", "error_rise", "eigenvalues", "root_mean_square", "median", "best")
    config = FlatnessConfig(**{**BASE, **OF.get(measure, {}), "measure": (measure,), **options})
    return [{k: repr(v) for k, v in row.items() if k in found} for row in measures(subject, config).rows]


def tried(subject: Subject, measure: str, name: str) -> object:
    """What is found with the option, or the sentence that refuses it."""
    beside = BESIDE.get(name, {}) if measure in SEARCHED else {}
    try:
        return numbers(subject, measure, **beside, **{name: OTHER[name]})
    except InputError as error:
        return str(error)


def test_every_option_is_here() -> None:
    assert ["measure", *OTHER] == [field.name for field in dataclasses.fields(FlatnessConfig)]


@pytest.mark.filterwarnings("ignore:the loss depends on tensors")  # --layers leaves some where they are
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("measure", MEASURES)
def test_an_option_changes_what_is_found_or_is_refused(subject: Subject, measure: str) -> None:
    plain = numbers(subject, measure)
    projected = numbers(subject, measure, **PROJECTED) if measure in SEARCHED else plain
    found = {name: tried(subject, measure, name) for name in OTHER}
    silent = {name for name, one in found.items() if one == (projected if name in BESIDE else plain)}
    allowed = {name for name, where in SAME if where in (measure, None)}
    assert not silent - allowed


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", [name for name in OTHER if name not in {"n_eval", "split", "half_prec"}])
def test_some_measure_refuses_it_and_another_reads_it(name: str) -> None:
    read = set()
    for measure in MEASURES:
        layer = {"feature_layer": LAYER} if measure in {"feature-rank", "knn-error"} else {}
        searched = BESIDE.get(name, {"restarts": 2} if name == "seed" else {}) if measure in SEARCHED else {}
        try:
            FlatnessConfig(measure=(measure,), **{**layer, **searched, name: OTHER[name]})
        except InputError:
            continue
        read.add(measure)
    assert read
    assert read != set(MEASURES)
