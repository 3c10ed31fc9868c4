"""How flat a trained network is: measures that are taken once and kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowland.deep.asked import requests, search_of
from lowland.deep.data import Split
from lowland.deep.examined import Examined
from lowland.deep.flatness import FlatnessConfig, Measure
from lowland.deep.objective import AUTOCAST_TYPES, autocast
from lowland.deep.records import MetricsRow
from lowland.deep.subject import Subject, pick_parameters
from lowland.errors import InputError
from lowland.sam import L2, Captures, MicroBatches
from lowland.sam.captures import reason_against
from lowland.sam.precision import HALF
from lowland.sharpness import (
    ActiveReLUs,
    AutoPGD,
    GaussNewton,
    ProjectedAscent,
    average_case,
    empirical_fisher,
    feature_rank,
    features_at,
    gradient_norms,
    hessian_eigenvalues,
    hessian_trace,
    knn_error,
    one_step_sharpness,
    sam_edge,
    spectral_density,
    suboptimality,
    worst_case_grid,
)

Row = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """The measures of one network.

    Attributes:
        subject: The network.
        rows: One per number, as plain values.
        densities: Nodes and weights of the eigenvalues' density, if it was asked for.
    """

    subject: Subject
    rows: list[Row]
    densities: dict[str, np.ndarray] = field(default_factory=dict)


def measures(
    subject: Subject,
    config: FlatnessConfig,
    *,
    known: Sequence[Mapping[str, Any]] = (),
    on_row: Callable[[Row], object] = lambda _: None,
    on_progress: Callable[[str, float], object] = lambda *_: None,
) -> Taken:
    """Takes the measures of a network that are not ``known`` yet.

    Args:
        subject: The network; the same afterwards, bit for bit.
        config: What to measure.
        known: Rows of earlier calls. One that says all that was asked for is not measured again.
        on_row: Called with each new row as soon as there is one.
        on_progress: Called with the measure's name and the share of it that is done.

    Returns:
        A row per number, known ones included.

    Raises:
        InputError: If the network has no such examples or parameters, or a number is out of its range.
    """
    rows: list[Row] = []
    densities: dict[str, np.ndarray] = {}
    taking = _Taking(subject, config)
    for name in dict.fromkeys(config.measure):
        asked = list(requests(name, config, taking.common))
        missing = []
        for request in asked:
            found = next((row for row in known if request.items() <= row.items()), None)
            if found is None or name == "density":
                missing.append(request)
            else:
                rows.append(dict(found))
        if not missing:
            continue
        for row in taking.taken(name, missing, partial(on_progress, name)):
            rows.append(row)
            on_row(row)
        densities |= taking.densities
    return Taken(subject, rows, densities)


class _Taking:
    """The measures of one network on one set of examples."""

    def __init__(self, subject: Subject, config: FlatnessConfig) -> None:
        self.subject, self.config = subject, config
        self.on = Examined.of(subject, config)
        self.params = pick_parameters(subject.model, config.layers)
        self.densities: dict[str, np.ndarray] = {}
        self._recorded = Captures()
        self.common = {
            "examples": len(self.on.split),
            "split": config.split,
            "logit_norm": config.logit_norm,
            "layers": config.layers,
            "half_prec": config.half_prec,
            **({} if subject.criterion.name == "ce" else {"loss": subject.criterion.name}),
            "dtype": str(next(iter(self.params.values())).dtype).removeprefix("torch."),
        }

    def taken(
        self, name: Measure, missing: list[Row], on_progress: Callable[[float], object]
    ) -> Iterator[Row]:
        """The rows that are missing of a measure."""
        if name == "worst-case":
            yield from self._worst_cases(missing, on_progress)
            return
        for i, request in enumerate(missing):
            yield from self._others(name, request)
            on_progress((i + 1) / len(missing))

    def _worst_cases(self, missing: list[Row], on_progress: Callable[[float], object]) -> Iterator[Row]:
        sizes = list(dict.fromkeys(request["m"] for request in missing))
        for i, m in enumerate(sizes):
            requests = [request for request in missing if request["m"] == m]
            found = worst_case_grid(
                self.on.loss,
                self.params,
                self.on.examples(m),
                rho=[request["rho"] for request in requests],
                m=[m],
                on_progress=lambda share, i=i: on_progress((i + share) / len(sizes)),  # type: ignore[misc]
                longer=self._longer(),
                **self._options(m),
            )
            for request, one in zip(requests, found, strict=True):
                yield one.row() | request

    def _others(self, name: Measure, request: Row) -> Iterator[Row]:
        config, params, m = self.config, self.params, request.get("m")
        if name == "average-case":
            found = average_case(
                self.on.loss,
                params,
                self.on.parts(),
                rho=request["rho"],
                distribution=config.distribution,
                scaling=config.scaling,
                stderr=config.stderr,
                samples=config.samples,
                seed=config.seed,
            )
            yield found.row() | request
        elif name == "one-step":
            options: dict[str, Any] = {"m": m, "engine": self.on.engine(m), "captures": self._captures(m)}
            found = one_step_sharpness(
                self.on.loss, params, self.on.examples(m), rho=request["rho"], **options
            )
            yield found.row() | request
        elif name == "suboptimality":
            options = self._options(m)
            yield (
                suboptimality(
                    self.on.loss, params, self.on.examples(m), rho=request["rho"], m=m, **options
                ).row()
                | request
            )
        elif name == "gradient-norm":
            how: dict[str, Any] = {"m": m, "engine": self.on.engine(m), "captures": self._captures(m)}
            norms = gradient_norms(self.on.loss, params, self.on.examples(m), **how)
            assert norms.groups is not None
            quantiles = torch.quantile(
                norms.groups.double().cpu(), torch.tensor([0.1, 0.5, 0.9]).double()
            ).tolist()
            spread = dict(zip(("tenth", "median", "ninetieth"), quantiles, strict=True))
            yield norms.row() | spread | request
        elif name in {"eigenvalues", "trace", "density"}:
            yield from self._curvature(name, request)
        else:
            yield {"value": self._of_features(name), "stderr": math.nan} | request

    def _captures(self, m: int | None) -> Captures | None:
        """Where steps of a loss of ours are recorded, for all radii."""
        config = self.subject.config
        in_half = any(p.dtype in HALF for p in self.params.values())
        ours = config is not None and not (config.has_own_model or config.has_own_loss)
        why = reason_against(L2(), engine=self.on.engine(m), in_half=in_half)
        return self._recorded if ours and why is None else None

    def _of_features(self, name: Measure) -> float:
        if name == "active-relus":
            with ActiveReLUs() as counted, torch.no_grad():
                for part in self.on.parts():
                    self.on.outputs(*part)
            active: float = counted.fraction
            return active
        features = self._features(self.on.split)
        if name == "feature-rank":
            return float(feature_rank(features))
        test = self.subject.split("test").head(self.config.n_eval)
        votes, asked = (features, self.on.split.targets), (self._features(test), test.targets)
        return knn_error(votes, asked, k=self.config.neighbours)

    def _features(self, split: Split) -> Tensor:
        layer = self.config.feature_layer
        assert layer is not None
        parts = zip(*(torch.split(argument, 256) for argument in split.arguments), strict=True)
        with autocast(self.config.half_prec, split.inputs.device):
            features = features_at(self.subject.model, layer, parts, run=self.subject.outputs)
        return features.float() if features.dtype in AUTOCAST_TYPES.values() else features

    def _curvature(self, name: Measure, request: Row) -> Iterator[Row]:
        config, parts, loss = self.config, self.on.parts(), self._matrix()
        if name == "eigenvalues":
            weights = sum(p.numel() for p in self.params.values())
            top = hessian_eigenvalues(
                loss, self.params, parts, k=min(config.k, weights), tol=1e-3, seed=config.seed
            )
            row = {"value": top.value, "stderr": math.nan, "eigenvalues": top.values.tolist()}
            row |= {"ratio": top.ratio, "matrix_products": top.products}
            yield row | self._smallest(loss, parts, row) | self._edge() | request
        elif name == "trace":
            found = hessian_trace(loss, self.params, parts, products=config.products, seed=config.seed)
            yield {"value": found.value, "stderr": found.stderr, "matrix_products": found.products} | request
        else:
            density = spectral_density(loss, self.params, parts, steps=config.products, seed=config.seed)
            self.densities = {"nodes": density.nodes, "weights": density.weights}
            yield {
                "value": density.moment(1),
                "stderr": math.nan,
                "root_mean_square": math.sqrt(max(density.moment(2), 0.0)),
                "matrix_products": density.products,
            } | request

    def _matrix(self) -> Callable[..., Any]:
        """What is asked for its matrix."""
        if self.config.matrix == "gauss-newton":
            return GaussNewton(self.on.outputs, self.on.criterion)
        is_fisher = self.config.matrix == "empirical-fisher"
        return empirical_fisher(self.on.mean_loss) if is_fisher else self.on.mean_loss

    def _smallest(self, loss: Callable[..., Any], parts: MicroBatches, row: Row) -> Row:
        """The smallest eigenvalue; NaN, which is said, if it does not converge."""
        try:
            found = hessian_eigenvalues(
                loss, self.params, parts, end="smallest", tol=1e-2, seed=self.config.seed
            )
        except InputError as error:
            _log.warning("the smallest eigenvalue was not found: %s", error)
            return {"smallest": math.nan}
        return {"smallest": found.value, "matrix_products": row["matrix_products"] + found.products}

    def _edge(self) -> Row:
        """The sharpness at which SAM would be unstable with the run's last step size and its radius."""
        run, config = self.subject.run, self.subject.config
        rows = [] if run is None else [row for row in run.rows(MetricsRow) if row.get("lr")]
        if config is None or not rows:
            return {}
        norm = gradient_norms(self.on.loss, self.params, self.on.parts(), m=None, engine="loop").value
        edge = sam_edge(norm, rho=config.sam_rho, eta=rows[-1]["lr"])
        return {"gradient_norm": norm, "edge": edge, "eta": rows[-1]["lr"], "edge_rho": config.sam_rho}

    def _staying(self) -> list[Tensor]:
        """Parameters that are not perturbed."""
        every = pick_parameters(self.subject.model, None)
        return [p for name, p in every.items() if name not in self.params]

    def _longer(self) -> ProjectedAscent | AutoPGD | None:
        steps = self.config.longer
        return None if steps is None else search_of(self.config, steps)

    def _options(self, m: int | None) -> dict[str, Any]:
        config = self.config
        return {
            "norm": config.norm,
            "scaling": config.scaling,
            "search": search_of(config),
            "restarts": config.restarts,
            "seed": config.seed,
            "beside": self._staying() if config.direction == "whole" else (),
            "transfer": config.batch_transfer,
            "climbed": self.on.towards_targets if config.random_targets else None,
            "engine": self.on.engine(m),
        }
