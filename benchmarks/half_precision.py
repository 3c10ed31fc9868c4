"""SAM with weights of half precision: what arrives of the perturbation, how exact the gradient is, its cost.

    python benchmarks/half_precision.py
    python benchmarks/half_precision.py --dtype float16 --seeds 16

First the error of the gradient of a small network of linear layers and a layer norm, relative to float64 at
the same numbers, beside that of a plain gradient; and the share of what the climb changes in the gradient
that arrives, along that change. Then how much of rho ||g|| a loss that is linear in the weights rises by.
Both engines; means over seeds. Last the time of rounding weights at random, and of a step relative to one of
the loop that rounds to the nearest: in turns, medians.
"""

import argparse
import copy
import statistics
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowland.sam.perturb
from interleaved import measured, ratios
from lowland import SAM
from lowland.sam.noise import Noise
from lowland.sam.precision import stochastically_rounded

RADII = (0.003, 0.01, 0.03, 0.1, 0.3)
GROUPS = (None, 4, 1)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    print(f"torch {torch.__version__}, {arguments.dtype} weights, {arguments.seeds} seeds, 1 thread\n")
    errors(dtype, arguments.seeds)
    rises(dtype, arguments.seeds)
    times(dtype, arguments.rounds)


def errors(dtype: torch.dtype, seeds: int) -> None:
    """Gradients against float64."""
    print("| rho | m | plain | loop | batched | arrives, loop | arrives, batched |\n" + "|---" * 7 + "|")
    for m in GROUPS:
        for rho in RADII:
            rows = [_errors(dtype, seed, rho, m) for seed in range(seeds)]
            plain, loop, batched, a, b = (statistics.fmean(column) for column in zip(*rows, strict=True))
            shown = f"{plain:.2%} | {loop:.2%} | {batched:.2%} | {a:.3f} | {b:.3f}"
            print(f"| {rho} | {m or 'B'} | {shown} |", flush=True)


def _errors(dtype: torch.dtype, seed: int, rho: float, m: int | None) -> tuple[float, ...]:
    torch.manual_seed(seed)
    model = network().to(dtype)
    x, y = torch.randn(64, 32).to(dtype), torch.randint(10, (64,))
    exact = copy.deepcopy(model).double()
    truth, start = (gradient(exact, x.double(), y, r, m, "loop") for r in (rho, 0.0))
    plain = gradient(model, x, y, 0.0, m, "loop")
    change, found = truth - start, []
    for engine in ("loop", "batched"):
        g = gradient(model, x, y, rho, m, engine)
        found.append((_relative(g, truth), float((g - plain) @ change / change.square().sum())))
    (loop, a), (batched, b) = found
    return _relative(plain, start), loop, batched, a, b


def network() -> nn.Module:
    """Five linear layers."""
    inner = [layer for _ in range(3) for layer in (nn.GELU(), nn.Linear(64, 64))]
    return nn.Sequential(nn.Linear(32, 64), *inner, nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))


def gradient(model: nn.Module, x: Tensor, y: Tensor, rho: float, m: int | None, engine: str) -> Tensor:
    """The SAM gradient in float64."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        outputs = model(x)
        return F.cross_entropy(outputs if outputs.dtype == torch.float64 else outputs.float(), y)

    model.zero_grad()
    SAM(model, rho=rho, m=m, engine=engine).backward(loss, x, y)
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def rises(dtype: torch.dtype, seeds: int) -> None:
    """A loss that is linear in the weights, at ``w + e`` and at ``w``."""
    print("\n| rho | rises by, of rho ||g||: loop | batched | rounded to the nearest |\n" + "|---" * 4 + "|")
    for rho in RADII:
        rows = [
            [_rise(dtype, seed, rho, way) for way in ("loop", "batched", "nearest")] for seed in range(seeds)
        ]
        shown = " | ".join(f"{statistics.fmean(column):.3f}" for column in zip(*rows, strict=True))
        print(f"| {rho} | {shown} |", flush=True)


def _rise(dtype: torch.dtype, seed: int, rho: float, way: str) -> float:
    torch.manual_seed(seed)
    w = nn.Parameter((0.02 * torch.randn(512, 512)).to(dtype))
    x, slope = torch.randn(4, 512).to(dtype), torch.randn(512).double()
    seen: list[float] = []

    def loss(x: Tensor) -> Tensor:
        value = (F.linear(x, w).double() @ slope).mean()
        seen.append(_number(value))
        return value

    engine = "loop" if way == "nearest" else way
    nearest = mock.patch.object(lowland.sam.perturb, "stochastically_rounded", lambda x, t, _: x.to(t))
    g = x.double().mean(0).norm() * slope.norm()
    with nearest if way == "nearest" else nullcontext():
        SAM([w], rho=rho, m=4, engine=engine).backward(loss, x)
    return float((seen[-1] - seen[-2]) / (rho * g))


def _number(value: Tensor) -> float:
    whole = value.detach()
    if torch._C._functorch.is_batchedtensor(whole):
        whole = torch._C._functorch.get_unwrapped(whole)
    return float(whole.mean())


def times(dtype: torch.dtype, rounds: int) -> None:
    """Rounding by itself, and a step of the loop."""
    x, noise = 0.02 * torch.randn(2**21), Noise.draw()
    steps = {
        "at random": lambda: stochastically_rounded(x, dtype, noise),
        "nearest": lambda: x.to(dtype),
    }
    found = measured(steps, rounds)
    each = {name: 1e9 * statistics.median(seconds) / x.numel() for name, seconds in found.items()}
    print("\nns a weight: " + ", ".join(f"{name} {value:.1f}" for name, value in each.items()))
    model = nn.Sequential(nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 1024)).to(dtype)
    data = torch.randn(64, 1024).to(dtype)
    sam = {engine: SAM(model, rho=0.05, m=16, engine=engine) for engine in ("loop", "batched")}

    def step(engine: str, way: str) -> None:
        model.zero_grad()
        nearest = mock.patch.object(lowland.sam.perturb, "stochastically_rounded", lambda x, t, _: x.to(t))
        with nearest if way == "nearest" else nullcontext():
            sam[engine].backward(lambda x: model(x).float().square().mean(), data)

    found = measured(
        {
            "loop": lambda: step("loop", "random"),
            "loop, nearest": lambda: step("loop", "nearest"),
            "batched": lambda: step("batched", "random"),
        },
        rounds,
    )
    print("a step of m = 16 of 64, relative to the loop that rounds to the nearest:")
    for name in ("loop", "batched"):
        low, middle, high = ratios(found, name, "loop, nearest")
        print(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f})")


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


if __name__ == "__main__":
    main()
