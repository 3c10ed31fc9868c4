"""How fast batches are made: ours against Pillow image by image, and as a share of a training step.

Both make batches of 128 float32 images of CIFAR's size from uint8 images in memory: a random order, a random
crop after padding by 4, a random flip, pixels in [0, 1]. The images are random, so nothing is downloaded.

    python benchmarks/data_pipeline.py --rounds 15
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from lowland.deep.data import augment, to_float
from lowland.deep.models import build_model

BATCH, NUM_IMAGES, PADDING = 128, 10_000, 4


def pillow_batch(images: np.ndarray, order: Tensor, generator: torch.Generator) -> Tensor:
    """What a data loader's process does: each image by itself, as torchvision's transforms do it."""
    return torch.stack([_pillow_image(images[position], generator) for position in order.tolist()])


def _pillow_image(pixels: np.ndarray, generator: torch.Generator) -> Tensor:
    h, w = pixels.shape[:2]
    image = ImageOps.expand(Image.fromarray(pixels), border=PADDING, fill=0)
    top, left = (int(torch.randint(2 * PADDING + 1, (1,), generator=generator)) for _ in range(2))
    image = image.crop((left, top, left + w, top + h))
    if torch.rand(1, generator=generator) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    array = torch.from_numpy(np.array(image, copy=True))
    return array.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def our_batch(images: Tensor, order: Tensor, generator: torch.Generator) -> Tensor:
    """The same for the whole batch at once."""
    return to_float(augment(images.index_select(0, order), generator, padding=PADDING))


def training_step(x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward, backward and SGD with momentum of a small PreAct ResNet, on one batch."""
    model = build_model("resnet_tiny_gn", num_classes=10, model_width=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def seconds(function: Callable[[], object]) -> float:
    """Time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, float]:
    """Median time of a call; within a round the contestants take turns."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    order = torch.randperm(NUM_IMAGES, generator=generator)[:BATCH]
    step = training_step(
        our_batch(images, order, generator), torch.randint(10, (BATCH,), generator=generator)
    )
    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: our_batch(images, order, generator), 10),
        "pillow": (lambda: pillow_batch(pixels, order, generator), 2),
        "step": (step, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, (function, calls) in contestants.items():
            times[name] += [seconds(function) for _ in range(calls)]
    warm_up = {name: calls for name, (_, calls) in contestants.items()}
    return {name: statistics.median(taken[warm_up[name] :]) for name, taken in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds whose median is taken")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: its own choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    times = measure(arguments.rounds)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", "numpy"))
    print(f"Python {platform.python_version()}, {packages}; {torch.get_num_threads()} threads of PyTorch")
    print(f"batches of {BATCH} images, 3×32×32; medians of {arguments.rounds} rounds\n")
    print(f"{'':<28}{'ms per batch':>14}{'images per second':>20}")
    for label, name in (("Pillow, image by image", "pillow"), ("lowland, whole batch", "ours")):
        print(f"{label:<28}{1e3 * times[name]:>14.2f}{BATCH / times[name]:>20,.0f}")
    print(f"\nratio: {times['pillow'] / times['ours']:.1f} (goal: at least 20)")
    share = times["ours"] / times["step"]
    print(
        f"one step of resnet_tiny_gn, width 16: {1e3 * times['step']:.1f} ms; "
        f"a batch takes {share:.1%} of it (goal: 3 %)"
    )


if __name__ == "__main__":
    main()
