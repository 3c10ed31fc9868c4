"""Means and spreads over seeds, the same in every figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from lowland.figures.paper.figure import Rows
from lowland.figures.style import in_our_style, panels, shared_legend


def methods_of(rows: Rows) -> list[str]:
    """In the order of their first rows, ERM first."""
    found = list(dict.fromkeys(row["method"] for row in rows))
    return sorted(found, key=lambda name: name != "ERM")


def kinds_of(rows: Rows) -> dict[str, Rows]:
    """The rows of each method and radius: ERM first, then falling m and rising radii."""
    groups: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: (row["method"] != "ERM", -row["m"], row["method"], row["rho"])):
        label = row["method"] if row["rho"] == 0.0 else f"{row['method']}, ρ = {row['rho']:g}"
        groups.setdefault(label, []).append(row)
    return groups


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """ERM grey, the others in our colours."""
    others = [name for name in names if name != "ERM"]
    return {"ERM": "0.3"} | {name: f"C{i % 8}" for i, name in enumerate(others)}


def panels_of(rows: Rows, key: str = "network") -> tuple[Figure, dict[str, Axes]]:
    """A panel per network; those that were only published are called so."""
    ours = {row[key] for row in rows if not row["published"]}
    names = sorted(dict.fromkeys(row[key] for row in rows), key=lambda name: name not in ours)
    titles = [name if name in ours else f"published: {name}" for name in names]
    figure, axes = panels(titles, height=4.0)
    return figure, dict(zip(names, axes, strict=True))


def line_with_spread(ax: Axes, rows: Rows, x: str, y: str, *, color: str, label: str) -> None:
    """The mean over seeds, and a band of one standard deviation to both sides; published values dotted.

    A single point has a bar in place of the band.
    """
    for published in (False, True):
        own = [row for row in rows if row["published"] == published and row.get(y) is not None]
        if not own:
            continue
        at = sorted({row[x] for row in own})
        values = [[row[y] for row in own if row[x] == where] for where in at]
        mean = np.array([np.mean(v) for v in values])
        if published:
            ax.plot(at, mean, "o:", color=color, fillstyle="none", markersize=4, label=f"{label}, published")
            continue
        ax.plot(at, mean, "o-" if len(at) < 20 else "-", color=color, markersize=4, label=label)
        if any(len(v) > 1 for v in values):
            spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values])
            if len(at) == 1:
                ax.errorbar(at, mean, yerr=spread, color=color, capsize=3)
            else:
                ax.fill_between(at, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)


def level_with_spread(ax: Axes, rows: Rows, y: str, *, color: str, label: str) -> None:
    """A horizontal line at the mean over seeds, and its band."""
    for published in (False, True):
        values = [row[y] for row in rows if row["published"] == published]
        if not values:
            continue
        name = f"{label}, published" if published else label
        ax.axhline(float(np.mean(values)), color=color, linestyle=":" if published else "--", label=name)
        if len(values) > 1:
            mean, spread = np.mean(values), np.std(values, ddof=1)
            ax.axhspan(mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)


@in_our_style
def plot_over_radius(rows: Rows) -> Figure:
    """Test error over the radius: a line per method, ERM as a level, a panel per network."""
    figure, axes = panels_of(rows)
    colors = colors_of(methods_of(rows))
    for network, ax in axes.items():
        own = [row for row in rows if row["network"] == network]
        for name, color in colors.items():
            group = [row for row in own if row["method"] == name]
            if name == "ERM":
                level_with_spread(ax, group, "test_error", color=color, label=name)
            else:
                line_with_spread(ax, group, "rho", "test_error", color=color, label=name)
        over_radii(ax)
        limit_to(ax, [row["test_error"] for row in own if np.isfinite(row["test_error"])])
    axes[next(iter(axes))].set_ylabel("test error (%)")
    shared_legend(figure, list(axes.values()))
    return figure


def over_radii(ax: Axes) -> None:
    """A logarithmic axis of radii."""
    logarithmic(ax, "ρ")


def logarithmic(ax: Axes, label: str) -> None:
    """A logarithmic axis, with ticks that do not run into each other."""
    ax.set(xscale="log", xlabel=label)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(NullLocator())


def limit_to(ax: Axes, values: Sequence[float]) -> None:
    """A range that shows what is near the best values; what is far above leaves the picture."""
    if not values:
        return
    low, middle = min(values), float(np.median(values))
    step = max(middle - low, 1e-3)
    ax.set_ylim(low - 0.4 * step, min(middle + 3.0 * step, max(values) + step))
