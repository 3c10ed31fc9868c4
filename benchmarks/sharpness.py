"""Worst-case sharpness of every example, of many radii and of many starts: all at once against one by one.

    python benchmarks/sharpness.py --rounds 3

For each network, projected gradient ascent of 20 steps:

* m = 1 over 512 examples, by the batched engine, by our loop, and by a loop written here in plain PyTorch,
  the way such measurements are made today. The loops take minutes; they run over the first ``--loop``
  examples in each round, and their time is that of one example times 512.
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
from lowland.sharpness import worst_case, worst_case_grid
from networks import mlp

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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
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


def _examples(net: nn.Module, x: Tensor, rounds: int, few: int) -> None:
    params, y = list(net.parameters()), torch.arange(len(x), device=x.device) % 10
    loss = _loss(net)
    kinds = {
        "all at once": lambda: worst_case(loss, params, (x, y), rho=RHO, m=1, engine="batched").groups,
        "our loop": lambda: worst_case(loss, params, (x[:few], y[:few]), rho=RHO, m=1, engine="loop").groups,
        "plain loop": lambda: _plain(net, x[:few], y[:few]),
    }
    times, values = _turns(kinds, rounds)
    scaled = {
        name: [t * (1 if name == "all at once" else EXAMPLES / few) for t in times[name]] for name in times
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


NETWORKS = {"MLP 784-1024-1024-10": _mlp, "resnet_tiny_gn, width 16": _resnet}

if __name__ == "__main__":
    main()
