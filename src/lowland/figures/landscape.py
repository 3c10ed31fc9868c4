"""The loss along lines and curves between networks, and over planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lowland.errors import InputError
from lowland.extras import MissingExtra, needs
from lowland.figures.style import drawable, in_our_style, log_scale_if_wide, panels

Rows = Sequence[Mapping[str, float]]
Points = Mapping[str, tuple[float, float]]
_SPLITS = ("train", "test")


@in_our_style
def plot_line(paths: Mapping[str, Rows], *, ends: Mapping[str, float], along: str, axis: str) -> Figure:
    """Loss, and error if there are any, of both splits along one or several paths.

    Args:
        paths: Rows with ``along``, losses and errors (``train_loss``, ``test_error``, ...), by name.
        ends: Networks on the path, by name, and where they are.
        along: The name of the coordinate.
        axis: What it is called in the picture.
    """
    has_errors = any("train_error" in rows[0] for rows in paths.values())
    quantities = ("loss", "error") if has_errors else ("loss",)
    figure, axes = panels(["loss", "error (%)"][: len(quantities)])
    for ax, quantity in zip(axes, quantities, strict=True):
        factor = 100.0 if quantity == "error" else 1.0
        for color, (name, rows) in enumerate(paths.items()):
            for style, split in zip(("-", "--"), _SPLITS, strict=True):
                if f"{split}_{quantity}" in rows[0]:
                    x = [row[along] for row in rows]
                    y = factor * drawable([row[f"{split}_{quantity}"] for row in rows])
                    label = f"{name}, {split}" if len(paths) > 1 else split
                    ax.plot(x, y, style, color=f"C{color}", label=label)
        if quantity == "loss":
            log_scale_if_wide(ax)
        for name, x_end in ends.items():
            ax.axvline(x_end, color="0.6", linewidth=0.8, zorder=0)
            where = ax.get_xaxis_transform()
            ax.text(x_end, 1.01, name, transform=where, ha="center", va="bottom", fontsize=7, color="0.4")
        ax.set_title(ax.get_title(), pad=16)
        ax.set_xlabel(axis)
        ax.legend(loc="best")
    return figure


@in_our_style
def plot_contour(rows: Rows, value: str, *, title: str, points: Points) -> Figure:
    """Filled contours of a value over a plane, errors in percent, with the networks that lie in it."""
    x, y, z = grid(rows, value)
    z = 100.0 * z if value.endswith("_error") else z
    figure, (ax,) = panels([title], height=3.8)
    if _is_wide(z):
        finite = z[np.isfinite(z)]
        levels = np.geomspace(finite.min(), finite.max() * (1 + 1e-9), 16)
        drawn = ax.contourf(x, y, np.ma.masked_invalid(z), levels=levels, norm=LogNorm(), cmap="cividis")
    else:
        drawn = ax.contourf(x, y, np.ma.masked_invalid(z), levels=15, cmap="cividis")
    figure.colorbar(drawn, ax=ax, format="%.2g")
    for name, (px, py) in points.items():
        ax.plot(px, py, "o", color="white", markeredgecolor="black", markersize=6)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"}
        ax.annotate(name, (px, py), (5, 6), textcoords="offset points", fontsize=7, bbox=box)
    ax.set_xlabel("first direction")
    ax.set_ylabel("second direction")
    return figure


def surface_html(rows: Rows, value: str, *, title: str, points: Points) -> str:
    """An interactive surface as one page that needs no network.

    Raises:
        InputError: If plotly is not installed.
    """
    try:
        with needs("html", "plotly"):
            import plotly.graph_objects as go
    except MissingExtra as error:
        raise InputError(str(error)) from error
    x, y, z = grid(rows, value)
    wide = _is_wide(z)
    color = np.log10(z) if wide else z
    bar = {"title": f"log10 of {value}" if wide else value}
    figure = go.Figure(go.Surface(x=x, y=y, z=z, surfacecolor=color, colorscale="Cividis", colorbar=bar))
    for name, (px, py) in points.items():
        height = z[np.abs(y - py).argmin(), np.abs(x - px).argmin()]
        marker: dict[str, Any] = {"size": 5, "color": "white", "line": {"color": "black", "width": 1}}
        figure.add_trace(
            go.Scatter3d(
                x=[px], y=[py], z=[height], mode="markers+text", text=[name], marker=marker, showlegend=False
            )
        )
    height_axis = {"title": value, "type": "log" if wide else "linear"}
    axes = {"xaxis_title": "first direction", "yaxis_title": "second direction", "zaxis": height_axis}
    figure.update_layout(title=title, scene=axes, margin={"l": 0, "r": 0, "t": 50, "b": 0})
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def _is_wide(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size > 0 and finite.min() > 0 and finite.max() > 10 * finite.min())


def grid(rows: Rows, value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates and values of a plane's rows: x, y, and an array of shape ``(len(y), len(x))``."""
    x = np.array(sorted({row["x"] for row in rows}))
    y = np.array(sorted({row["y"] for row in rows}))
    z = np.full((len(y), len(x)), np.nan)
    for row in rows:
        z[np.searchsorted(y, row["y"]), np.searchsorted(x, row["x"])] = row[value]
    return x, y, drawable(z)
