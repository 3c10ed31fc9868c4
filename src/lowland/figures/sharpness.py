"""Sharpness against the radius, and densities of eigenvalues, of several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowland.figures.style import in_our_style, panels
from lowland.sharpness import SpectralDensity

Rows = Sequence[Mapping[str, Any]]


@in_our_style
def plot_sharpness(rows: Mapping[str, Rows]) -> Figure:
    """A panel per measure and m: a line per network over the radius, with standard errors.

    Args:
        rows: Rows with ``measure``, ``rho``, ``value`` and, perhaps, ``stderr`` and ``m``, by network.
    """
    titles = list(dict.fromkeys(_title(row) for own in rows.values() for row in own if "rho" in row))
    figure, axes = panels(titles)
    for ax, title in zip(axes, titles, strict=True):
        lowest = np.inf
        for name, own in rows.items():
            points = sorted(_point(row) for row in own if "rho" in row and _title(row) == title)
            if points:
                rho, value, error = np.array(points).T
                ax.errorbar(rho, value, error, label=name, marker="o", markersize=3, capsize=2)
                lowest = min(lowest, value.min())
        ax.set_xlabel("ρ")
        ax.set_xscale("log")
        radii = sorted({row["rho"] for own in rows.values() for row in own if "rho" in row})
        ax.set_xticks(radii, [f"{rho:g}" for rho in radii])
        ax.minorticks_off()
        if lowest > 0:
            ax.set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


@in_our_style
def plot_densities(densities: Mapping[str, SpectralDensity]) -> Figure:
    """The density of the eigenvalues of each network, each eigenvalue a Gaussian of 1 % of the range."""
    figure, (ax,) = panels(["density of the eigenvalues"])
    nodes = np.concatenate([density.nodes.ravel() for density in densities.values()])
    low, high = nodes.min(), nodes.max()
    width = 0.01 * max(high - low, 1e-12)
    grid = np.linspace(low - 3 * width, high + 3 * width, 1000)
    for name, density in densities.items():
        ax.plot(grid, np.maximum(density.on(grid, width=width), 1e-7), label=name)
    ax.set_yscale("log")
    ax.set_ylim(bottom=1e-6)
    ax.set_xlabel("eigenvalue")
    ax.legend(loc="best")
    return figure


def _title(row: Mapping[str, Any]) -> str:
    m = row.get("m")
    return str(row["measure"]) if m is None else f"{row['measure']}, m = {m}"


def _point(row: Mapping[str, Any]) -> tuple[float, float, float]:
    error = row.get("stderr")
    return row["rho"], row["value"], 0.0 if error is None or not np.isfinite(error) else error
