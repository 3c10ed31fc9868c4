"""Products with the Hessian, its largest eigenvalues and its trace: ours and the peers', time and memory.

    python benchmarks/curvature.py --rounds 5

The same float32 networks, batches and weights for all, after 100 steps of training. Products are beside the
bare one, ``torch.autograd.grad`` of gradients that are there. Eigenvalues are beside a reference of ours to
1e-7 with vectors in float64: each library runs at ever tighter tolerances, and as many iterations as these
take, until all of its values are within ``--accuracy`` of the reference or there is no tighter one; the
time is of that run. PyHessian looks for the largest in size, of either sign. Traces are of as many products
each; ``cost`` is seconds times the squared standard deviation over ``--seeds`` seeds, which more samples
leave as it is. Memory is the peak of tensors within a call above what there was, in bytes a weight,
activations included.

Peers, where they can be imported: hessian-eigenthings (a test dependency), PyHessian and curvlinops (``pip
install --no-deps pyhessian curvlinops-for-pytorch linear_operator einops einconv``: with their dependencies
they bring a torchvision that does not load beside this torch).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import nn

from interleaved import measured, peak_memory, ratios
from lowland.deep.models import build_model
from lowland.sharpness import hessian_eigenvalues, hessian_trace
from lowland.sharpness.curved import matrix_of
from networks import mlp

K, PRODUCTS = 5, 60
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
Call = Callable[[], Any]


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--accuracy", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds")
    for name in arguments.networks:
        problem = Problem(*NETWORKS[name]())
        print(f"\n## {name}, {problem.weights:,} weights, batch of {len(problem.y)}", flush=True)
        _products(problem, arguments.rounds)
        _eigenvalues(problem, arguments.rounds, arguments.accuracy)
        _traces(problem, arguments.seeds)


class Problem:
    """A network and its batch, as each library takes them.

    Args:
        model: Gives logits.
        x: Inputs.
        y: Classes.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.model, self.x, self.y = model.eval(), x, y
        self.params = list(model.parameters())
        self.weights = sum(p.numel() for p in self.params)
        self.libraries = {
            name: library
            for name, module, library in (
                ("hessian-eigenthings", "hessian_eigenthings", self._eigenthings),
                ("PyHessian", "pyhessian", self._pyhessian),
                ("curvlinops", "curvlinops", self._curvlinops),
            )
            if _imported(module) is not None
        }

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(self.model(x), y)

    def bare(self) -> Call:
        """A product without a library."""
        slopes = torch.autograd.grad(self.loss(self.x, self.y), self.params, create_graph=True)
        v = [torch.randn_like(p) for p in self.params]
        return lambda: torch.autograd.grad(slopes, self.params, v, retain_graph=True)

    def _eigenthings(self) -> dict[str, Any]:
        library = _imported("hessian_eigenthings")
        data = [(self.x, self.y)]
        operator = library.HessianOperator(self.model, data, library.supervised_loss(F.cross_entropy))
        v = torch.randn(self.weights)
        return {
            "product": lambda: operator.matvec(v),
            "eigenvalues": lambda tol: np.sort(
                np.asarray(
                    library.lanczos(
                        operator, k=K, tol=tol, max_iter=300, which="LA", seed=0, reorthogonalize=True
                    ).eigenvalues
                )
            )[::-1],
            "trace": lambda seed: float(
                library.hutchinson(operator, num_samples=PRODUCTS, seed=seed).estimate
            ),
        }

    def _pyhessian(self) -> dict[str, Any]:
        library = _imported("pyhessian")
        operator = library.hessian(self.model, nn.CrossEntropyLoss(), data=(self.x, self.y), cuda=False)
        v = [torch.randn_like(p) for p in self.params]
        from pyhessian.utils import hessian_vector_product

        def trace(seed: int) -> float:
            torch.manual_seed(seed)
            return float(np.mean(operator.trace(maxIter=PRODUCTS, tol=0.0)))

        return {
            "product": lambda: hessian_vector_product(operator.gradsH, operator.params, v),
            "eigenvalues": lambda tol: np.array(operator.eigenvalues(maxIter=1000, tol=tol, top_n=K)[0]),
            "trace": trace,
        }

    def _curvlinops(self) -> dict[str, Any]:
        library = _imported("curvlinops")
        operator = library.HessianLinearOperator(
            self.model, nn.CrossEntropyLoss(), self.params, [(self.x, self.y)], check_deterministic=False
        )
        v = torch.randn(self.weights)

        def trace(seed: int) -> float:
            torch.manual_seed(seed)
            return float(library.hutchinson_trace(operator, num_matvecs=PRODUCTS))

        return {
            "product": lambda: operator @ v,
            "eigenvalues": lambda tol: np.sort(eigsh(operator.to_scipy(), k=K, which="LA", tol=tol)[0])[::-1],
            "trace": trace,
        }


def _imported(module: str) -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module(module)
    return None


def _products(problem: Problem, rounds: int) -> None:
    with matrix_of(problem.loss, problem.params, (problem.x, problem.y), None, "mean") as matrix:
        v, out = torch.randn(problem.weights), torch.empty(problem.weights)
        steps: dict[str, Call] = {"bare": problem.bare(), "lowland": partial(matrix.product, v, out)}
        steps |= {name: make()["product"] for name, make in problem.libraries.items()}
        times = measured(steps, 4 * rounds)
    print("\n| product | median ms | / bare (quartiles) |\n|---|---|---|")
    for name in steps:
        low, middle, high = ratios(times, name, "bare")
        print(
            f"| {name} | {1e3 * statistics.median(times[name]):.2f} | {middle:.2f} ({low:.2f}–{high:.2f}) |"
        )


def _eigenvalues(problem: Problem, rounds: int, accuracy: float) -> None:
    ours = partial(hessian_eigenvalues, problem.loss, problem.params, (problem.x, problem.y), k=K)
    wanted = ours(tol=1e-7, dtype=torch.float64, max_products=20000).values
    calls: dict[str, Callable[[float], np.ndarray]] = {"lowland": lambda tol: ours(tol=tol).values}
    calls |= {name: make()["eigenvalues"] for name, make in problem.libraries.items()}
    steps, said = {}, {}
    for name, call in calls.items():
        for tol in TOLERANCES:
            error = float(np.abs(np.asarray(call(tol)) / wanted - 1.0).max())
            if error <= accuracy:
                break
        steps[name], said[name] = partial(call, tol), (tol, error)
    times = measured(steps, rounds)
    print(f"\n| top {K} | tolerance | error | median s | / lowland (quartiles) | bytes a weight |")
    print("|---|---|---|---|---|---|")
    for name, step in steps.items():
        low, middle, high = ratios(times, name, "lowland")
        tol, error = said[name]
        held = peak_memory(lambda step=step: step) / problem.weights
        print(
            f"| {name} | {tol:g} | {error:.1e} | {statistics.median(times[name]):.2f} | "
            f"{middle:.2f} ({low:.2f}–{high:.2f}) | {held:.0f} |",
            flush=True,
        )


def _traces(problem: Problem, seeds: int) -> None:
    ours = partial(hessian_trace, problem.loss, problem.params, (problem.x, problem.y), products=PRODUCTS)
    calls: dict[str, Callable[[int], float]] = {
        "lowland": lambda seed: ours(seed=seed).value,
        "lowland, Hutch++": lambda seed: ours(seed=seed, sketch=PRODUCTS // 3).value,
    }
    calls |= {name: make()["trace"] for name, make in problem.libraries.items()}
    print(f"\n| trace, {PRODUCTS} products | mean | deviation | median s | cost / lowland | bytes a weight |")
    print("|---|---|---|---|---|---|")
    costs = {}
    for name, call in calls.items():
        found, times = [], []
        for seed in range(seeds):
            begun = time.perf_counter()
            found.append(call(seed))
            times.append(time.perf_counter() - begun)
        mean, deviation, median = np.mean(found), np.std(found, ddof=1), statistics.median(times)
        costs[name] = median * deviation**2
        held = peak_memory(lambda call=call: partial(call, 0)) / problem.weights
        print(
            f"| {name} | {mean:.4g} | {deviation:.2g} | {median:.2f} | "
            f"{costs[name] / costs['lowland']:.2f} | {held:.0f} |",
            flush=True,
        )


def _trained(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """After some steps: at initialization a spectrum is not what anybody measures."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def _mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return _trained(mlp(784, 512, 512, 10), torch.randn(128, 784), torch.arange(128) % 10)


def _resnet() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return _trained(
        build_model("resnet18", num_classes=10, model_width=16),
        torch.randn(32, 3, 32, 32),
        torch.arange(32) % 10,
    )


def _encoder() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(64 * 16, 10)
    )
    return _trained(model, torch.randn(64, 16, 64), torch.arange(64) % 10)


NETWORKS = {"MLP 784-512-512-10": _mlp, "ResNet-18 of width 16": _resnet, "transformer encoder": _encoder}

if __name__ == "__main__":
    main()
