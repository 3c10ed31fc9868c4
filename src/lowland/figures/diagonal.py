"""Diagonal linear networks: losses, the radius, and Theorems 1 and 2 beside the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowland.diagonal.experiment import Outcome
from lowland.diagonal.theorem2 import Check
from lowland.figures.seeds import by_label
from lowland.figures.style import drawable, in_our_style, panels

DOUBLED = "[2ρ]: the original's convention, whose 1-SAM climbs twice as far"


@in_our_style
def plot_losses(outcomes: Sequence[Outcome]) -> Figure:
    """Losses over iterations: the median over seeds, and thin each seed; a cross where it diverged."""
    groups = by_label(outcomes)
    figure, axes = panels(["training loss", "test loss"], height=3.6 + 0.2 * len(groups))
    for ax, name in zip(axes, ("train_loss", "test_loss"), strict=True):
        for number, (label, runs) in enumerate(groups.items()):
            _curve(
                ax,
                label,
                "-" if number < 8 else "--",
                [(o.result.iterations + 1, drawable(getattr(o.result, name))) for o in runs],
            )
        ax.set(xscale="log", yscale="log", xlabel="iteration")
        for outcome in outcomes[:1]:
            _phase_lines(ax, outcome)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    _note_convention(figure, groups)
    return figure


@in_our_style
def plot_radius(outcomes: Sequence[Outcome]) -> Figure:
    """Final test loss over the radius by method: mean and range over seeds; a cross on top for divergence."""
    figure, (ax,) = panels(["final test loss"])
    groups = by_label([o for o in outcomes if len(o.plan.phases) == 1])
    methods: dict[str, list[tuple[float, list[float]]]] = {}
    for label, runs in groups.items():
        method, _, _ = label.partition(",")
        mark = " [2ρ]" if "[2ρ]" in label else ""
        losses = drawable([o.result.test_loss[-1] for o in runs]).tolist()
        methods.setdefault(method + mark, []).append((runs[0].plan.phases[0].rho, losses))
    for method, points in methods.items():
        if points[0][0] == 0.0:
            ax.axhline(float(np.mean(points[0][1])), color="0.4", linestyle="--", label=method)
            continue
        finite = [(rho, losses) for rho, losses in points if np.isfinite(losses).all()]
        radii = [rho for rho, _ in finite]
        (line,) = ax.plot(radii, [np.mean(losses) for _, losses in finite], "o-", label=method)
        if any(len(losses) > 1 for _, losses in finite):
            low, high = [min(losses) for _, losses in finite], [max(losses) for _, losses in finite]
            ax.fill_between(radii, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for rho, losses in points:
            if not np.isfinite(losses).all():
                where = ax.get_xaxis_transform()
                ax.plot(rho, 0.97, "x", color=line.get_color(), transform=where, clip_on=False)
    ax.set(xscale="log", yscale="log", xlabel="ρ")
    radii = sorted({rho for points in methods.values() for rho, _ in points if rho > 0.0})
    ax.set_xticks(radii, [f"{rho:g}" for rho in radii])
    ax.minorticks_off()
    ax.legend()
    _note_convention(figure, groups)
    return figure


@in_our_style
def plot_theory(outcomes: Sequence[Outcome]) -> Figure:
    """Theorem 1: how far each coordinate's initialization shrank, and the predictor the potential selects."""
    groups = by_label([o for o in outcomes if o.theory is not None])
    titles = ["log(α / effective α), per coordinate", "coefficients"]
    figure, (shrinking, selected) = panels(titles, height=3.6 + 0.2 * len(groups))
    for label, runs in groups.items():
        theories = [o.theory for o in runs if o.theory is not None and np.isfinite(o.theory.distance)]
        if not theories:
            continue
        predicted = np.concatenate([t.predicted for t in theories])
        shrinking.plot(predicted, np.concatenate([t.shrunk for t in theories]), "o", ms=3, label=label)
        betas = np.concatenate([o.result.beta for o in runs if np.isfinite(o.result.beta).all()])
        selected.plot(np.concatenate([t.minimizer for t in theories]), betas, "o", ms=3)
    for ax in (shrinking, selected):
        _diagonal(ax)
    shrinking.set(xscale="log", yscale="log")
    shrinking.set(xlabel="ρΔ along the trajectory", ylabel="read off the final weights")
    selected.set(xlabel="minimizer of the potential", ylabel="trained")
    figure.legend(*shrinking.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    _note_convention(figure, groups)
    return figure


@in_our_style
def plot_convergence(checks: Sequence[Check]) -> Figure:
    """Theorem 2: measured, with three standard errors, under the bound (dashed)."""
    figure, axes = panels(["loss above the minimum, last iterate", "mean squared gradient, all iterates"])
    for ax, statement in zip(axes, ("loss", "gradient"), strict=True):
        for check in (check for check in checks if check.statement == statement):
            found = check.found
            (line,) = ax.plot(found.steps, found.measured, label=check.label)
            ax.plot(found.steps, found.bound, "--", color=line.get_color())
            low = np.maximum(found.measured - 3 * found.error, 0.1 * found.measured)
            high = found.measured + 3 * found.error
            ax.fill_between(found.steps, low, high, color=line.get_color(), alpha=0.2)
        ax.set(xscale="log", yscale="log", xlabel="T")
    axes[0].legend(title="dashed: Theorem 2")
    return figure


def _curve(ax: Axes, label: str, style: str, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    values = np.array([losses for _, losses in curves])
    middle = np.median(values, axis=0)
    (line,) = ax.plot(curves[0][0], middle, style, label=label)
    if len(curves) > 1:
        for iterations, losses in curves:
            ax.plot(iterations, losses, color=line.get_color(), linewidth=0.5, alpha=0.5)
    for iterations, losses in curves:
        finite = np.flatnonzero(np.isfinite(losses))
        if len(finite) < len(losses) and len(finite) > 0:
            ax.plot(iterations[finite[-1]], losses[finite[-1]], "x", color=line.get_color())


def _phase_lines(ax: Axes, outcome: Outcome) -> None:
    for end in np.cumsum([phase.steps for phase in outcome.plan.phases])[:-1]:
        ax.axvline(end, color="0.7", linewidth=0.8)


def _diagonal(ax: Axes) -> None:
    ax.axline((0.0, 0.0), (1.0, 1.0), color="0.6", linewidth=0.8, zorder=0)


def _note_convention(figure: Figure, labels: Mapping[str, object]) -> None:
    if any("[2ρ]" in label for label in labels):
        figure.suptitle(DOUBLED, fontsize="small")
