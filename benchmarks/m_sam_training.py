"""1-SAM and 4-SAM trained for as many epochs as 128-SAM, at the price of the batched engine.

``python benchmarks/m_sam_training.py --data-dir DIR --out DIR [--epochs 6] [--seeds 1] [--threads 2]`` trains
``resnet_tiny_gn`` on 10,000 images of CIFAR-10 and prints test errors, the time of each run, and the time
that the loop would have taken, from steps of the first batches. An interrupted run goes on when called again.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch

from lowland.deep import Control, Place, TrainConfig, TrainState, launch, load_data, run_name
from lowland.runs import Run

BASE = TrainConfig(
    dataset="cifar10",
    frac_train=0.2,
    model="resnet_tiny_gn",
    model_width=16,
    lr_max=0.1,
)
RADII = {"ERM": (None, 0.0), "128-SAM": (128, 0.1), "4-SAM": (4, 0.05), "1-SAM": (1, 0.03)}
"""m and radius; radii shrink with m."""


def main() -> None:
    """Trains, and prints the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/m_sam_training"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loop-steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = Place(device="cpu", data_dir=options.data_dir, threads=options.threads)
    print("| | rho | seed | test error % | train error % | seconds | step s | step by the loop s |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        for name, (m, rho) in RADII.items():
            config = dataclasses.replace(BASE, seed=seed, m=m, sam_rho=rho, epochs=options.epochs)
            print(row(name, config, place, options.out, options.loop_steps), flush=True)


def row(name: str, config: TrainConfig, place: Place, out: Path, loop_steps: int) -> str:
    """One line of the table; the run is trained unless it is there."""
    step = step_seconds(config, place, 3 * loop_steps)
    loop = (
        step_seconds(dataclasses.replace(config, engine="loop"), place, loop_steps) if config.is_sam else step
    )
    path = out / run_name(config)
    started = time.monotonic()
    run = Run(path)
    if run.summary is None:
        launch(config, path, place, Control(None, 30.0, lambda: False))
    last = run.rows()[-1]
    seconds = time.monotonic() - started
    errors = (f"{100 * last[key]:.2f}" for key in ("test_error", "train_error"))
    numbers = (
        f"{config.sam_rho:g}",
        str(config.seed),
        *errors,
        f"{seconds:.0f}",
        f"{step:.2f}",
        f"{loop:.2f}",
    )
    return f"| {' | '.join((name, *numbers))} |"


def step_seconds(config: TrainConfig, place: Place, steps: int) -> float:
    """Median seconds of a step, after one to warm up."""
    state = TrainState(config, load_data(config, place), place.torch_device())
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        state.step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
