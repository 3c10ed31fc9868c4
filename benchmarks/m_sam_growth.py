"""How the cost of m-SAM grows with m, with the width and with the batch, for both engines.

    python benchmarks/m_sam_growth.py --rounds 9 --out growth.png

Prints comma-separated values and draws the time of a step relative to ordinary SAM (m = B; see
``networks.ordinary_sam``) of the same width and batch: the median of the ratios within the rounds, and their
quartiles. At each point all kinds take turns. Where the width or the batch varies, m is 1 (``--m``). The loop
takes long, so that it runs in a third of the rounds.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from interleaved import measured, ratios
from lowland.figures.style import in_our_style, panels, save
from networks import NETWORKS, m_sam, ordinary_sam

WIDTHS = {"mlp": [64, 128, 256, 512, 1024, 2048], "resnet_gn": [8, 16, 32, 64]}
BATCHES = {"mlp": [8, 16, 32, 64, 128, 256], "resnet_gn": [8, 16, 32, 64, 128]}
LABELS = {"mlp": "MLP", "resnet_gn": "ResNet GN"}
AXES = {"m": "examples in a group, m", "width": "width", "batch": "examples in the batch, B"}


@dataclass(frozen=True)
class Point:
    """What is measured at once."""

    network: str
    axis: str
    m: int
    width: int
    batch: int

    @property
    def at(self) -> int:
        """Where it is on its axis."""
        return getattr(self, self.axis)


@dataclass(frozen=True)
class Cost:
    """Time of an engine relative to ordinary SAM: the median, and quartiles."""

    point: Point
    engine: str
    low: float
    middle: float
    high: float


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--m", type=int, default=1, help="where the width or the batch varies")
    parser.add_argument("--batch", type=int, help="where m or the width varies; each network's own if absent")
    parser.add_argument("--points", type=int, help="of each axis, from the smallest; all if absent")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("network,axis,m,width,batch,engine,relative_to_sam,low,high")
    costs = []
    for point in _points(arguments):
        for cost in _measured(point, torch.device(arguments.device), arguments.rounds):
            costs.append(cost)
            _print(cost)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save(_drawn(costs, arguments.m), arguments.out)


def _points(arguments: argparse.Namespace) -> Iterator[Point]:
    for name in arguments.networks:
        width, batch = NETWORKS[name].width, arguments.batch or NETWORKS[name].batch
        powers = [2**k for k in range(batch.bit_length()) if 2**k < batch] + [batch]
        for m in powers[: arguments.points]:
            yield Point(name, "m", m, width, batch)
        for w in WIDTHS[name][: arguments.points]:
            yield Point(name, "width", arguments.m, w, batch)
        for b in BATCHES[name][: arguments.points]:
            yield Point(name, "batch", arguments.m, width, b)


def _measured(point: Point, device: torch.device, rounds: int) -> Iterator[Cost]:
    """Both engines at a point."""
    problem = NETWORKS[point.network].problem(device, batch=point.batch, width=point.width)
    for engine, turns in (("batched", rounds), ("loop", max(3, rounds // 3))):
        steps = {"SAM": ordinary_sam(problem), engine: m_sam(problem, engine, point.m)}
        yield Cost(point, engine, *ratios(measured(steps, turns), engine, "SAM"))


def _print(cost: Cost) -> None:
    point = cost.point
    numbers = ",".join(f"{v:.3f}" for v in (cost.middle, cost.low, cost.high))
    print(
        f"{point.network},{point.axis},{point.m},{point.width},{point.batch},{cost.engine},{numbers}",
        flush=True,
    )


@in_our_style
def _drawn(costs: list[Cost], m: int) -> Figure:
    titles = ["m, at a fixed batch", f"width, at m = {m}", f"batch, at m = {m}"]
    figure, axes = panels(titles, height=3.8)
    for ax, axis in zip(axes, AXES, strict=True):
        _panel(ax, [cost for cost in costs if cost.point.axis == axis], AXES[axis])
    axes[0].set_ylabel("time relative to ordinary SAM (m = B)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _panel(ax: Axes, costs: list[Cost], label: str) -> None:
    networks = list(dict.fromkeys(cost.point.network for cost in costs))
    for i, network in enumerate(networks):
        for engine, style in (("batched", "-"), ("loop", "--")):
            line = [c for c in costs if c.point.network == network and c.engine == engine]
            at = [c.point.at for c in line]
            name = f"{LABELS[network]}, {engine}"
            ax.plot(at, [c.middle for c in line], style, color=f"C{i}", marker="o", markersize=3, label=name)
            ax.fill_between(
                at, [c.low for c in line], [c.high for c in line], color=f"C{i}", alpha=0.15, linewidth=0
            )
    ax.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":", label="ordinary SAM")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    for direction in (ax.xaxis, ax.yaxis):
        direction.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_xlabel(label)


if __name__ == "__main__":
    main()
