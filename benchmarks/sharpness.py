"""Worst-case sharpness: what searches find with as many gradients, and how long many climbs take.

    python benchmarks/sharpness.py --searches
    python benchmarks/sharpness.py --rounds 3

``--searches``: on six networks (``trained.py``), in balls of both norms, plain and adaptive, what searches
find whose gradients total 20, as shares of the best of them; and how much higher 100 steps from four starts
get than the default. Otherwise, for each of two networks, projected gradient ascent of 20 steps:

* m = 1 over 512 examples, by the batched engine, by our loop, and by a loop written here in plain PyTorch,
  the way such measurements are made today. The loops take minutes; they run over the first ``--loop``
  examples in each round, and their time is that of one example times 512. Beside it the default search.
* m = 32: five radii together and one call each; four starts (three of them random) together by the batched
  engine and one after the other.

All kinds of a comparison take turns. Prints medians and ratios, and by how much the values differ.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.deep.models import build_model
from lowland.sharpness import AutoPGD, ProjectedAscent, WorstCase, worst_case, worst_case_grid
from networks import mlp
from trained import NETWORKS as NETWORKS_TO_SEARCH
from trained import trained

STEPS, RHO = 20, 0.1
RADII = [0.02, 0.05, 0.1, 0.2, 0.4]
EXAMPLES = 512
Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Prints a table per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--loop", type=int, default=16, help="examples that the loops run over")
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--searches", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.searches:
        _searches()
        return
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, "
        f"{arguments.rounds} rounds"
    )
    for name in [arguments.only] if arguments.only else NETWORKS:
        net, x = NETWORKS[name]()
        net, x = net.to(arguments.device), x.to(arguments.device)
        print(f"\n{name}, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} million parameters")
        _examples(net, x, arguments.rounds, arguments.loop)
        _grids(net, x[:32], arguments.rounds)


def _searches() -> None:
    """A line for each ball of each network."""
    shares: dict[str, list[float]] = {name: [] for name in SEARCHES}
    gaps = []
    print(f"| network | ball | m | value | {' | '.join(SEARCHES)} | 100 × 4 |")
    print(f"|---|---|---|---|{'---|' * len(SEARCHES)}---|")
    for name in NETWORKS_TO_SEARCH:
        network = trained(name)
        batch, params = (network.x[:128], network.y[:128]), list(network.model.parameters())
        for norm, scaling, rho in BALLS:
            for m in (128, 16):
                look = partial(
                    worst_case, network.losses, params, batch, rho=rho, m=m, norm=norm, scaling=scaling
                )
                values = [look(search=s, restarts=n).value for s, n in SEARCHES.values()]
                most = look(search=AutoPGD(100), restarts=4).value
                for own, value in zip(shares.values(), values, strict=True):
                    own.append(value / max(values))
                gaps.append(most / values[0] - 1.0)
                cells = " | ".join(f"{own[-1]:.3f}" for own in shares.values())
                print(
                    f"| {name} | {norm}, {scaling}, {rho:g} | {m} | {values[0]:.3g} | {cells} "
                    f"| {100 * gaps[-1]:+.1f} % |",
                    flush=True,
                )
    print(f"\n{len(gaps)} cases: share of the best, mean (least; cases below 97 %)")
    for name, own in shares.items():
        below = sum(share < 0.97 for share in own)
        print(f"  {name:32}{statistics.mean(own):.3f} ({min(own):.3f}; {below})")
    low, middle, high = statistics.quantiles(gaps, n=4)
    print(
        f"100 steps from four starts: +{100 * middle:.2f} % ({100 * low:.2f} to {100 * high:.2f}), "
        f"at most +{100 * max(gaps):.1f} %"
    )


def _examples(net: nn.Module, x: Tensor, rounds: int, few: int) -> None:
    params, y = list(net.parameters()), torch.arange(len(x), device=x.device) % 10
    loss = _loss(net)
    ascent = {"rho": RHO, "m": 1, "search": ProjectedAscent(STEPS)}
    kinds = {
        "all at once": lambda: worst_case(loss, params, (x, y), engine="batched", **ascent).groups,
        "auto-PGD": lambda: worst_case(loss, params, (x, y), rho=RHO, m=1, engine="batched").groups,
        "our loop": lambda: worst_case(loss, params, (x[:few], y[:few]), engine="loop", **ascent).groups,
        "plain loop": lambda: _plain(net, x[:few], y[:few]),
    }
    times, values = _turns(kinds, rounds)
    scaled = {
        name: [t * (EXAMPLES / few if name.endswith("loop") else 1) for t in times[name]] for name in times
    }
    _print(f"m = 1, {EXAMPLES} examples, {STEPS} steps", scaled, "all at once")
    for name in ("our loop", "plain loop"):
        differing = (values["all at once"][:few] - values[name]).abs().max().item()
        print(
            f"  largest difference to {name}: {differing:.1e} (values up to {values[name].max().item():.2g})"
        )


def _grids(net: nn.Module, x: Tensor, rounds: int) -> None:
    params, y = list(net.parameters()), torch.arange(len(x), device=x.device) % 10
    call = partial(worst_case_grid, _loss(net), params, (x, y), m=[16])
    kinds = {
        "together": lambda: call(rho=RADII, engine="batched"),
        "one by one, batched": lambda: [call(rho=[r], engine="batched") for r in RADII],
        "one by one, loop": lambda: [call(rho=[r], engine="loop") for r in RADII],
        "auto": lambda: call(rho=RADII),
    }
    _print("m = 16, 32 examples, five radii", _turns(kinds, rounds)[0], "together")
    kinds = {
        "together": lambda: call(rho=[RHO], restarts=4, engine="batched"),
        "one by one, loop": lambda: call(rho=[RHO], restarts=4, engine="loop"),
        "auto": lambda: call(rho=[RHO], restarts=4),
    }
    _print("m = 16, 32 examples, four starts", _turns(kinds, rounds)[0], "together")


def _plain(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The definition, one example after the other."""
    params = list(net.parameters())
    start = [p.detach().clone() for p in params]
    found = []
    for i in range(len(x)):
        one, label = x[i : i + 1], y[i : i + 1]
        losses = []
        for _ in range(STEPS):
            value = F.cross_entropy(net(one), label)
            g = torch.autograd.grad(value, params)
            losses.append(value.item())
            with torch.no_grad():
                norm = torch.sqrt(sum(t.square().sum() for t in g)).item()
                torch._foreach_add_(params, g, alpha=0.1 * RHO / norm)
                e = torch._foreach_sub(params, start)
                length = torch.sqrt(sum(t.square().sum() for t in e)).item()
                if length > RHO:
                    torch._foreach_mul_(e, RHO / length)
                    torch._foreach_copy_(params, torch._foreach_add(start, e))
        with torch.no_grad():
            losses.append(F.cross_entropy(net(one), label).item())
            torch._foreach_copy_(params, start)
        found.append(max(losses) - losses[0])
    return torch.tensor(found)


def _turns(
    kinds: dict[str, Callable[[], Tensor]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Times of each kind, in turns, after one round that is not counted; and what each returned."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    values = {name: kind() for name, kind in kinds.items()}
    for _ in range(rounds):
        for name, kind in kinds.items():
            begin = time.perf_counter()
            kind()
            times[name].append(time.perf_counter() - begin)
    return times, values


def _print(title: str, times: dict[str, list[float]], base: str) -> None:
    print(f" {title}")
    for name, own in times.items():
        ratios = [t / b for t, b in zip(own, times[base], strict=True)]
        print(f"  {name:22}{statistics.median(own):9.2f} s{statistics.median(ratios):8.2f} x")


def _loss(net: nn.Module) -> Loss:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y, reduction="none")

    return loss


def _mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return mlp(784, 1024, 1024, 10), torch.randn(EXAMPLES, 784)


def _resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return build_model("resnet_tiny_gn", num_classes=10, model_width=16), torch.rand(EXAMPLES, 3, 32, 32)


BALLS = (
    ("l2", "plain", 0.05),
    ("l2", "plain", 0.2),
    ("l2", "plain", 0.5),
    ("linf", "plain", 0.002),
    ("l2", "element", 0.3),
    ("linf", "element", 0.02),
)
SEARCHES = {
    "default": (WorstCase().search, WorstCase().restarts),
    "projected": (ProjectedAscent(20), 1),
    "projected, quarters of ρ": (ProjectedAscent(20, 1.0, schedule="quarters"), 1),
    "projected, 4 × 5": (ProjectedAscent(5, 0.5), 4),
    "auto-PGD, 2 × 10": (AutoPGD(10), 2),
    "auto-PGD, 4 × 5": (AutoPGD(5), 4),
}
NETWORKS = {"MLP 784-1024-1024-10": _mlp, "resnet_tiny_gn, width 16": _resnet}

if __name__ == "__main__":
    main()
