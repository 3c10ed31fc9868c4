"""Which measures of flatness to take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lowland.errors import InputError, require_default, require_finite
from lowland.sam.arguments import Engine
from lowland.sharpness.scales import Scaling

Measure = Literal[
    "worst-case",
    "average-case",
    "one-step",
    "suboptimality",
    "gradient-norm",
    "eigenvalues",
    "trace",
    "density",
    "active-relus",
    "feature-rank",
    "knn-error",
]


@dataclass(frozen=True)
class FlatnessConfig:
    """Which measures to take.

    Attributes:
        measure: Measures: worst-case (m-sharpness), average-case, one-step (SAM's own climb), suboptimality
            (many steps over one), gradient-norm, eigenvalues, trace, density (of the Hessian's eigenvalues);
            of the features: active-relus, feature-rank, knn-error (of the test examples, by votes of these).
        rho: Radii.
        m: Numbers of examples that share a perturbation.
        n_eval: Examples; the first ones of the split.
        split: Which part of the data.
        norm: Norm of the perturbation.
        scaling: Units of a perturbation: plain, each weight's size (element), its filter's norm (filter), or
            its size and 1 (shifted).
        logit_norm: Divide each example's logits by their size.
        layers: Regular expression for the names of the parameters that are perturbed; by default all.
        search: How the worst case is looked for: auto-PGD, or projected gradient ascent.
        steps: Steps of the search.
        longer: Steps of a second search, by which it is told how far the worst case still rises.
        step_size: Size of one step of projected ascent in units of rho.
        direction: Along the gradient over its norm (normalized), along the raw one, or, with layers, along
            the gradient over the norm of that of all layers, as in the original (whole).
        schedule: Step sizes: all the same, or times 1, 1/2, 1/4, 1/8 in the quarters of the search.
        restarts: Searches; all but the first begin at random points.
        random_targets: Search by lowering the loss of random wrong labels.
        batch_transfer: Measure each group's perturbation on the next group.
        distribution: Of the random perturbations of average-case.
        samples: Least number of these.
        stderr: Standard error that average-case is to reach; by default what samples give.
        k: Number of largest eigenvalues; the smallest one is computed too.
        matrix: Which matrix eigenvalues, trace and density are of.
        products: Matrix-vector products for the trace, and Lanczos steps of each of the density's four runs.
        feature_layer: The layer whose outputs are the features of feature-rank and knn-error.
        neighbours: Votes of knn-error.
        half_prec: Run the network in bfloat16 or float16.
        engine: Groups one after the other (loop), or all at once (batched).
        seed: Of everything random.
    """

    measure: tuple[Measure, ...] = ("worst-case",)
    rho: tuple[float, ...] = (0.05, 0.1)
    m: tuple[int, ...] = (128,)
    n_eval: int = 1024
    split: Literal["train", "test"] = "train"
    norm: Literal["l2", "linf"] = "l2"
    scaling: Scaling = "plain"
    logit_norm: bool = False
    layers: str | None = None
    search: Literal["auto", "projected"] = "auto"
    steps: int = 20
    longer: int | None = None
    step_size: float = 0.1
    direction: Literal["normalized", "raw", "whole"] = "normalized"
    schedule: Literal["constant", "quarters"] = "constant"
    restarts: int = 1
    random_targets: bool = False
    batch_transfer: bool = False
    distribution: Literal["gaussian", "uniform"] = "gaussian"
    samples: int = 32
    stderr: float | None = None
    k: int = 5
    matrix: Literal["hessian", "gauss-newton", "empirical-fisher"] = "hessian"
    products: int = 60
    feature_layer: str | None = None
    neighbours: int = 10
    half_prec: Literal["no", "bf16", "fp16"] = "no"
    engine: Engine = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("measure", "rho", "m"):
            if not getattr(self, name):
                raise InputError(f"{name} must be given at least one value, got none.")
        for name in ("n_eval", "k", "restarts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}.")
        if min(self.m) < 1:
            raise InputError(f"m must be positive, got {min(self.m)}.")
        if not all(0.0 < rho < math.inf for rho in self.rho):
            raise InputError(f"rho must be positive and finite, got {self.rho}.")
        require_finite(self)
        self._check_features()
        self._check_read()

    def _check_features(self) -> None:
        of_layer = _LAYER & set(self.measure)
        if of_layer and self.feature_layer is None:
            raise InputError(f"measure {min(of_layer)} needs feature_layer, the name of a layer, got none.")

    def _check_read(self) -> None:
        """Refuses what is given and read by none of the measures."""
        asked = set(self.measure)
        for names, readers in _READ_BY.items():
            if not readers & asked:
                those = " or ".join(name for name in get_args(Measure) if name in readers)
                require_default(self, names, f"without --measure {those}")
        if not asked & _DRAWN and self.restarts == 1 and not self.random_targets:
            require_default(self, ("seed",), "where nothing is drawn")
        if self.search == "auto":
            decided = ("step_size", "direction", "schedule")
            require_default(self, decided, "without --search projected: auto decides it")
        if self.longer is not None and self.longer <= self.steps:
            raise InputError(f"longer must be more than the {self.steps} steps, got {self.longer}.")
        if self.direction == "whole" and self.layers is None:
            raise InputError("direction whole needs layers, without which it is normalized, got none.")

    def described(self) -> dict[str, Any]:
        """The options as JSON holds them, but those that are younger than published numbers and not given.

        What measures are called is made from it, and stays what it was when an option is added.
        """
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in options.items() if not (k in _YOUNGER and v == _YOUNGER[k])}


_YOUNGER: Mapping[str, Any] = {"longer": None}
"""Options that came later, and what they are if they are not given."""

_SEARCHED = {"worst-case", "suboptimality"}
_CLIMBED = _SEARCHED | {"one-step"}
_GROUPED = _CLIMBED | {"gradient-norm"}
_SPECTRAL = {"eigenvalues", "trace", "density"}
_LAYER = {"feature-rank", "knn-error"}
_DRAWN = {"average-case", *_SPECTRAL}
_OF_LOSS = {*_GROUPED, "average-case", *_SPECTRAL}
_READ_BY: Mapping[tuple[str, ...], set[str]] = {
    ("rho",): {*_CLIMBED, "average-case"},
    ("m", "engine"): _GROUPED,
    ("norm", "restarts", "random_targets", "batch_transfer"): _SEARCHED,
    ("search", "steps", "step_size", "direction", "schedule"): _SEARCHED,
    ("longer",): {"worst-case"},
    ("scaling",): {*_SEARCHED, "average-case"},
    ("distribution", "samples", "stderr"): {"average-case"},
    ("matrix",): _SPECTRAL,
    ("k",): {"eigenvalues"},
    ("products",): {"trace", "density"},
    ("feature_layer",): _LAYER,
    ("neighbours",): {"knn-error"},
    ("logit_norm", "layers"): _OF_LOSS,
}
"""Options that only some measures read, and which do; the others are read by all."""
