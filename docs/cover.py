"""Draws the picture of the README and of the site's first page from the tables of the measurements.

python docs/cover.py
"""

import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from lowland.figures.style import in_our_style, panels, save

ROOT = Path(__file__).parents[1]
METHODS = ("ERM", "512-SAM", "8-SAM", "1-SAM")
NETWORKS = ("MLP 784-1024-1024-10", "PreAct ResNet GN, width 16", "BERT d = 256, 4 layers, T = 128")


@in_our_style
def cover(results: str) -> Figure:
    """Test errors of the demo, and what a step costs over m, as ``benchmarks/RESULTS.md`` has them."""
    figure, (errors, costs) = panels(
        [
            "Digits, 20 % of the labels wrong\nfull batch, 5 seeds",
            "What a step costs\nhere, and one group after the other",
        ],
        height=3.6,
    )
    for i, name in enumerate(METHODS):
        mean, deviation = _cells(results, name)[4].split(" ± ")
        errors.bar(i, float(mean), yerr=float(deviation), color="C0" if i else "0.45", capsize=4)
        errors.annotate(mean, (i, 0.6), ha="center", color="white", weight="bold")
    errors.set_xticks(range(len(METHODS)), METHODS)
    errors.set_ylabel("test error (%)")
    for i, network in enumerate(NETWORKS):
        rows = [_split(line) for line in results.splitlines() if line.startswith(f"| {network} |")]
        m, batched = [int(row[3]) for row in rows], [float(row[5]) for row in rows]
        loop = [ours * float(row[8]) for ours, row in zip(batched, rows, strict=True)]
        label = network.split(",")[0].split(" d =")[0]
        costs.plot(m, batched, "-", color=f"C{i}", marker="o", label=f"{label}, Lowland")
        costs.plot(m, loop, "--", color=f"C{i}", marker="o", mfc="white", label=f"{label}, one by one")
    costs.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":")
    costs.set(
        xscale="log",
        yscale="log",
        xlabel="examples that share a perturbation, m",
        ylabel="time / ordinary SAM",
    )
    costs.set_xticks([1, 4, 16, 64, 128], ["1", "4", "16", "64", "128"])
    costs.set_yticks([1, 2, 4, 8, 16, 32])
    costs.yaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    costs.xaxis.set_minor_locator(NullLocator())
    costs.yaxis.set_minor_locator(NullLocator())
    costs.legend(fontsize=7)
    return figure


def _cells(results: str, name: str) -> list[str]:
    """The first row of that name."""
    found = re.search(rf"^\| {re.escape(name)} \|.*$", results, flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"benchmarks/RESULTS.md must have a row {name}, got none.")
    return _split(found.group())


def _split(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


if __name__ == "__main__":
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    save(cover(text), ROOT / "docs" / "_static" / "lowland.svg")
