"""Diagonal and ReLU networks: time against the described algorithms in plain NumPy and PyTorch.

``python benchmarks/small_models.py [--rounds 5] [--threads 2] [--only NAME ...]`` prints a table per part:
``run`` (a run of 1-SAM), ``grid`` (the 14 runs of the notebook's cell 4), ``long`` (10^6 iterations of three
methods), ``relu`` (the SAM runs of five seeds), ``growth`` (time with n, d and the number of runs). The plain
sides do what the notebooks are described to do: a Python loop over examples for 1-SAM, autograd and an
optimizer for the ReLU network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from interleaved import measured
from lowland.diagonal import Phase, Plan, Problem, logged_iterations, sparse_regression, sweep, train
from lowland.relu import Training, on_the_line
from lowland.relu import train as train_relu
from lowland.relu.experiment import ReluConfig, conduct

NOTEBOOK = sparse_regression()
STEPS = 10_001
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)


def plain(
    problem: Problem, method: str, *, gamma: float, alpha: float, rho: float, steps: int = STEPS
) -> float:
    """The final test loss by NumPy, as the original computes: 1-SAM loops over examples."""
    X, y, n = problem.X, problem.y, problem.n
    u, v = np.full(problem.d, alpha), np.zeros(problem.d)
    logged, losses = set(logged_iterations(steps).tolist()), []
    for step in range(steps):
        if method == "1-sam":
            gu, gv = np.zeros(problem.d), np.zeros(problem.d)
            for k in range(n):
                x = X[k]
                climb = 2 * rho * (x @ (u * v) - y[k]) * x
                u_k, v_k = u + climb * v, v + climb * u
                pull = (x @ (u_k * v_k) - y[k]) * x / n
                gu, gv = gu + pull * v_k, gv + pull * u_k
        else:
            g = X.T @ (X @ (u * v) - y) / n
            u_s, v_s = u + rho * g * v, v + rho * g * u
            g = X.T @ (X @ (u_s * v_s) - y) / n
            gu, gv = g * v_s, g * u_s
        u, v = u - gamma * gu, v - gamma * gv
        if step in logged:
            train_loss = np.sum((X @ (u * v) - y) ** 2) / (2 * n)
            test_loss = np.sum((problem.X_test @ (u * v) - problem.y_test) ** 2) / (2 * len(problem.y_test))
            losses.append((train_loss, test_loss))
    return float(losses[-1][1])


def one(kernel: str, *, rho: float = 0.1, alpha: float = 0.02, gamma: float = 1 / 6) -> float:
    """The same run by lowland."""
    convention = {"rho_convention": "original", "kernel": kernel}
    return float(train(NOTEBOOK, "1-sam", gamma=gamma, alpha=alpha, rho=rho, **convention).test_loss[-1])


def single(args: argparse.Namespace) -> None:
    """A run of 1-SAM, n = 20, d = 30."""
    sides = {
        "NumPy, a loop over examples": lambda: plain(NOTEBOOK, "1-sam", gamma=1 / 6, alpha=0.02, rho=0.1),
        "in order": lambda: one("in order"),
        "algebraic": lambda: one("algebraic"),
    }
    times = measured(sides, args.rounds)
    peak = core_peak()
    title = "1-SAM, n = 20, d = 30, 10,001 iterations, one core"
    heading(title, "", "ms", "times faster", "test loss", "share of peak")
    slow = "NumPy, a loop over examples"
    counts = {"in order": 22 * 20 * 30, "algebraic": 10 * 20 * 30}
    for name, side in sides.items():
        middle = statistics.median(times[name])
        share = f"{100 * counts[name] * STEPS / middle / peak:.0f} %" if name in counts else ""
        row(name, f"{1e3 * middle:.1f}", faster(times, slow, name), f"{side():.10e}", share)
    print(f"Peak of a core, a large float64 product: {peak / 1e9:.1f} Gflop/s.")
    print("Operations a step and entry of X, without logging: 22 in order, 10 algebraic.")


def plans(kernel: str) -> list[Plan]:
    """Cell 4: n-SAM and 1-SAM, seven radii each, at the step size that it states."""
    return [
        Plan((Phase(method, 0.5, STEPS, rho, rho_convention="original"),), 0.1, kernel=kernel)
        for method in ("n-sam", "1-sam")
        for rho in GRID
    ]


def grid(args: argparse.Namespace) -> None:
    """The 14 runs of cell 4 on all threads."""

    def slow() -> None:
        with np.errstate(all="ignore"):
            for method in ("n-sam", "1-sam"):
                for rho in GRID:
                    plain(NOTEBOOK, method, gamma=0.5, alpha=0.1, rho=rho)

    sides = {
        "NumPy": slow,
        "in order": lambda: sweep(NOTEBOOK, plans("in order"), threads=args.threads),
        "algebraic": lambda: sweep(NOTEBOOK, plans("algebraic"), threads=args.threads),
        "algebraic, 1 thread": lambda: sweep(NOTEBOOK, plans("algebraic"), threads=1),
    }
    times = measured(sides, max(2, args.rounds // 2))
    heading(f"the 14 runs of cell 4, {args.threads} threads", "", "ms", "times faster")
    for name in sides:
        row(name, f"{1e3 * statistics.median(times[name]):.1f}", faster(times, "NumPy", name))


def long(args: argparse.Namespace) -> None:
    """10^6 iterations of Figure 6's three methods."""
    heading("10^6 iterations each, one core", "", "s in order", "s algebraic")
    totals = [0.0, 0.0]
    for method, rho in (("gd", 0.0), ("n-sam", 0.1), ("1-sam", 0.1)):
        cells = []
        for i, kernel in enumerate(("in order", "algebraic")):
            seconds = []
            for _ in range(max(2, args.rounds // 2)):
                start = time.perf_counter()
                train(NOTEBOOK, method, gamma=0.05, rho=rho, steps=1_000_000, kernel=kernel)
                seconds.append(time.perf_counter() - start)
            totals[i] += statistics.median(seconds)
            cells.append(f"{statistics.median(seconds):.2f}")
        row(method, *cells)
    row("all", *(f"{total:.2f}" for total in totals))


def relu(args: argparse.Namespace) -> None:
    """The ReLU network's SAM run of 10^6 iterations, five seeds."""
    iterations, problem = 1_000_001, on_the_line()
    train_relu(problem, Training(rho=0.3, steps=10))
    start = time.perf_counter()
    train_relu(problem, Training.original(0.3), seed=0)
    alone = time.perf_counter() - start
    ours, theirs = [], []
    few = 2_000
    for _ in range(max(2, args.rounds // 2)):
        start = time.perf_counter()
        torch_steps(few)
        theirs.append((time.perf_counter() - start) / few * iterations * 5)
        start = time.perf_counter()
        conduct(ReluConfig(rho=(0.3,), seeds=5), threads=args.threads)
        ours.append(time.perf_counter() - start)
    heading("ReLU network, n-SAM, 12 points, 100 neurons, 1,000,001 iterations", "", "s", "times faster")
    row("one seed, one core", f"{alone:.2f}", f"{statistics.median(theirs) / 5 / alone:.0f}")
    row(f"five seeds, {args.threads} threads", f"{statistics.median(ours):.2f}",
        f"{statistics.median([b / a for a, b in zip(ours, theirs, strict=True)]):.0f}")  # fmt: skip
    row(f"PyTorch, five seeds, from {few} iterations", f"{statistics.median(theirs):.0f}", "1")


def torch_steps(count: int) -> None:
    """``count`` iterations as described: a module, autograd, and SGD whose step size is negative to climb."""
    problem = on_the_line()
    x, y = torch.tensor(problem.x), torch.tensor(problem.y)
    torch.manual_seed(0)
    hidden = torch.nn.Linear(1, 100, dtype=torch.float64)
    out = torch.nn.Linear(100, 1, bias=False, dtype=torch.float64)
    module = torch.nn.Sequential(hidden, torch.nn.ReLU(), out)
    optimizer = torch.optim.SGD(module.parameters(), lr=5e-5)
    for it in range(count):
        optimizer.zero_grad()
        (0.5 * ((module(x)[:, 0] - y) ** 2).sum()).backward()
        before = [p.detach().clone() for p in module.parameters()]
        norm = torch.sqrt(sum((p.grad**2).sum() for p in module.parameters()))
        for p in module.parameters():
            p.grad /= norm
        optimizer.param_groups[0]["lr"] = -0.3
        optimizer.step()
        optimizer.zero_grad()
        loss = 0.5 * ((module(x)[:, 0] - y) ** 2).sum()
        loss.backward()
        with torch.no_grad():
            for p, w in zip(module.parameters(), before, strict=True):
                p.copy_(w)
        optimizer.param_groups[0]["lr"] = 5e-5 * (1 - it / 1_000_000)
        optimizer.step()
        if loss.item() <= 1e-5:
            break


def growth(args: argparse.Namespace) -> None:
    """Time with n, d and the number of runs."""
    heading("1-SAM, microseconds an iteration and run", "n", "d", "runs", "in order", "algebraic")
    sizes = [(n, 30, 1) for n in (5, 20, 80, 320)]
    sizes += [(20, d, 1) for d in (10, 30, 100, 300, 1000)]
    sizes += [(20, 30, runs) for runs in (2, 4, 16, 64)]
    for n, d, runs in sizes:
        problem = sparse_regression(n=n, d=d, n_test=0)
        steps = max(2_000, 60_000_000 // (n * d * 30))
        cells = []
        for kernel in ("in order", "algebraic"):
            plan = Plan((Phase("1-sam", 1e-3, steps, 0.05),), kernel=kernel)
            seconds = []
            for _ in range(args.rounds):
                start = time.perf_counter()
                sweep(problem, [plan] * runs, threads=args.threads)
                seconds.append(time.perf_counter() - start)
            cells.append(f"{1e6 * statistics.median(seconds) / steps / runs:.2f}")
        row(str(n), str(d), str(runs), *cells)


def core_peak() -> float:
    """Float64 operations per second of a large product on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.randn(800, 800, dtype=torch.float64)
    best = min(_seconds(lambda: a @ a) for _ in range(10))
    torch.set_num_threads(threads)
    return 2 * 800**3 / best


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def faster(times: dict[str, list[float]], slow: str, name: str) -> str:
    """The median of the ratios within the rounds."""
    return f"{statistics.median([a / b for a, b in zip(times[slow], times[name], strict=True)]):.0f}"


def heading(title: str, *columns: str) -> None:
    """A table's title and head."""
    print(f"\n**{title}**\n")
    row(*columns)
    print("|" + "---|" * len(columns))


def row(*cells: str) -> None:
    """A line of a table."""
    print("| " + " | ".join(cells) + " |", flush=True)


PARTS = {"run": single, "grid": grid, "long": long, "relu": relu, "growth": growth}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    for name in args.only:
        PARTS[name](args)


if __name__ == "__main__":
    main()
