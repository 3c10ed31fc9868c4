"""What SAM with m = B costs: Lowland's, pytorch_optimizer's, and a two-step written from the equations.

    python benchmarks/sam_overhead.py --rounds 21

Three networks: an MLP of 10 million parameters with 8 examples (parameters dominate), a ResNet and a
Transformer (forward and backward dominate). In each round every kind makes one step, in turns. Prints the
medians, the ratio to twice the SGD step within the rounds, and the peak of memory in the first step above the
weights, in copies of them (a gradient and a momentum are two). Needs `pip install -e .[dev]`.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytorch_optimizer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interleaved import Step, measured, peak_memory, ratios
from lowland.deep.models import build_model
from lowland.sam import SAM, SAMOptimizer

Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Prints one table per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, "
        f"{arguments.rounds} rounds"
    )
    for name in [arguments.only] if arguments.only else NETWORKS:
        _table(name, torch.device(arguments.device), arguments.rounds)


def _table(network: str, device: torch.device, rounds: int) -> None:
    steps = {name: kind(*_problem(network, device)) for name, kind in KINDS.items()}
    weights = sum(p.numel() * p.element_size() for p in _problem(network, device)[0].parameters())
    memory = {name: peak_memory(partial(kind, *_problem(network, device))) for name, kind in KINDS.items()}
    times = measured(steps, rounds)
    times["2 x SGD step"] = [2 * t for t in times["SGD step"]]
    print(f"\n{network}: {weights / 4e6:.2f} million parameters")
    print(f"{'':30}{'median ms':>10}{'/ 2 x SGD':>11}{'quartiles':>15}{'memory / weights':>18}")
    for name in KINDS:
        low, middle, high = ratios(times, name, "2 x SGD step")
        print(
            f"{name:30}{1e3 * statistics.median(times[name]):10.1f}{middle:11.3f}"
            f"{low:9.3f}-{high:.3f}{memory[name] / weights:18.2f}"
        )
    for peer in ("pytorch_optimizer SAM", "two-step from the equations"):
        print(f"lowland.SAM / {peer}: {ratios(times, 'lowland.SAM', peer)[1]:.3f}")


def _problem(network: str, device: torch.device) -> tuple[nn.Module, Loss, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x, y = NETWORKS[network]()
    model = model.to(device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    return model, loss, x.to(device), y.to(device)


def _mlp() -> tuple[nn.Module, Tensor, Tensor]:
    widths = [784, 2000, 2000, 2000, 10]
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(8, 784), torch.randint(10, (8,))


def _resnet() -> tuple[nn.Module, Tensor, Tensor]:
    model = build_model("resnet_tiny_gn", num_classes=10, model_width=16)
    return model, torch.randn(128, 3, 32, 32), torch.randint(10, (128,))


def _transformer() -> tuple[nn.Module, Tensor, Tensor]:
    layer = nn.TransformerEncoderLayer(192, 3, 768, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return (
        nn.Sequential(encoder, _Mean(), nn.Linear(192, 10)),
        torch.randn(32, 64, 192),
        torch.randint(10, (32,)),
    )


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _sgd(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return step


def _lowland(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    sam = SAM(model, rho=0.05)

    def step() -> None:
        optimizer.zero_grad()
        sam.backward(loss, x, y)
        optimizer.step()

    return step


def _lowland_optimizer(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Step:
    base = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    return _two_steps(SAMOptimizer(base, rho=0.05, module=model), loss, x, y)


def _pytorch_optimizer(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Step:
    base = torch.optim.SGD
    optimizer = pytorch_optimizer.SAM(
        model.parameters(), base_optimizer=base, rho=0.05, lr=1e-4, momentum=0.9
    )
    return _two_steps(optimizer, loss, x, y)


def _two_steps(optimizer: torch.optim.Optimizer, loss: Loss, x: Tensor, y: Tensor) -> Step:
    def step() -> None:
        loss(x, y).backward()
        optimizer.first_step(zero_grad=True)
        loss(x, y).backward()
        optimizer.second_step(zero_grad=True)

    return step


def _from_the_equations(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Step:
    """As wrappers of an optimizer do it: one parameter at a time, a copy of each weight kept."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    params = list(model.parameters())

    def step() -> None:
        loss(x, y).backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in params]).norm()
            before = [p.clone() for p in params]
            for p in params:
                p.add_(p.grad * (0.05 / (norm + 1e-12)))
        optimizer.zero_grad()
        loss(x, y).backward()
        with torch.no_grad():
            for p, w in zip(params, before, strict=True):
                p.copy_(w)
        optimizer.step()
        optimizer.zero_grad()

    return step


NETWORKS = {"MLP, batch 8": _mlp, "ResNet, batch 128": _resnet, "Transformer, batch 32": _transformer}
KINDS: dict[str, Callable[[nn.Module, Loss, Tensor, Tensor], Step]] = {
    "SGD step": _sgd,
    "lowland.SAM": _lowland,
    "lowland.SAMOptimizer": _lowland_optimizer,
    "pytorch_optimizer SAM": _pytorch_optimizer,
    "two-step from the equations": _from_the_equations,
}

if __name__ == "__main__":
    main()
