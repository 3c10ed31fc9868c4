"""What the training loop and SAM cost over a bare step, in one process, interleaved.

    python benchmarks/loop_overhead.py --rounds 15

Each round times one bare forward/backward/step on a batch that is there already, one step of the whole
loop (data order, augmentation, SAM's shell with rho = 0, averaged weights, sums), one step of SAM with
m = B, and one bare two-pass SAM step written here. Prints medians, and the ratios within each round.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interleaved import measured, ratios
from lowland.deep import TrainConfig, TrainState
from lowland.deep.data import Split, TrainingData
from lowland.deep.models import build_model
from lowland.sam import SAM


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--model", default="resnet_tiny_gn")
    parser.add_argument("--model-width", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = TrainConfig(
        dataset="cifar10",
        model=arguments.model,
        model_width=arguments.model_width,
        batch_size=arguments.batch_size,
        l2_reg=0.0005,
    )
    steps = _steps(config)
    times = measured(steps, arguments.rounds)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, "
        f"{arguments.model}, batch {arguments.batch_size}"
    )
    print(f"{'':34}{'median ms':>10}{'/ bare step':>13}{'quartiles':>16}")
    for name, taken in times.items():
        low, middle, high = ratios(times, name, "bare step")
        print(f"{name:34}{1e3 * statistics.median(taken):10.1f}{middle:13.3f}{low:9.3f}-{high:.3f}")
    ratio = ratios(times, "SAM.backward, m = B", "bare two-pass SAM")[1]
    print(f"SAM.backward over the bare two-pass SAM: {ratio:.3f}")


def _steps(config: TrainConfig) -> dict[str, Callable[[], object]]:
    images = torch.randint(256, (4 * config.batch_size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (len(images),))
    batch = images[: config.batch_size].float() / 255, labels[: config.batch_size]

    def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = build_model(config.model, num_classes=10, model_width=config.model_width)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.0005)

    return {
        "bare step": _bare(*model_and_optimizer(), *batch),
        "the whole loop, ERM": _loop(config, images, labels),
        "SAM.backward, m = B": _sam(*model_and_optimizer(), *batch),
        "bare two-pass SAM": _two_passes(*model_and_optimizer(), *batch),
    }


def _bare(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _sam(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], object]:
    sam = SAM(model, rho=0.1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    def step() -> None:
        optimizer.zero_grad()
        sam.backward(loss, x, y)
        optimizer.step()

    return step


def _two_passes(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Callable[[], object]:
    params = list(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), params)
        with torch.no_grad():
            factor = 0.1 / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            before = [p.clone() for p in params]
            torch._foreach_add_(params, torch._foreach_mul(gradients, factor))
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            torch._foreach_copy_(params, before)
        optimizer.step()

    return step


def _loop(config: TrainConfig, images: Tensor, labels: Tensor) -> Callable[[], object]:
    split = Split(images, labels, labels, torch.arange(len(labels)))
    state = TrainState(config, TrainingData(split, split, split, 10, (3, 32, 32)), torch.device("cpu"))

    def step() -> None:
        if state.iteration == state.steps_per_epoch:
            state.next_epoch()
        state.step()

    return step


if __name__ == "__main__":
    main()
