"""The ends of curves: what is cut off, what is written, and that it can be read."""

from itertools import pairwise
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lowland.figures.curves import plot_overlay, plot_run
from lowland.figures.ends import apart, cut_beginning, show_ends
from lowland.figures.style import panels

LOSS = 2.0
FALLING = [91.0, 40.0, 12.0, 9.0, 8.5, 8.0]


def rows(errors: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"epoch": float(i), "test_error": e / 100, "train_loss": LOSS / (i + 1), **more}
        for i, e in enumerate(errors)
    ]


def of_numbers(last: float) -> list[dict[str, Any]]:
    """A run without errors."""
    losses = [4.0, 3.0, 2.5, last]
    names = ("train_loss", "validation_loss", "test_loss")
    return [{"epoch": float(i), **dict.fromkeys(names, loss)} for i, loss in enumerate(losses)]


def values(ax) -> list[float]:
    return [float(text.get_text()) for text in ax.texts]


def test_a_beginning_that_dwarfs_the_rest_is_cut_off_and_the_axis_says_so() -> None:
    error, _ = plot_overlay({"a": rows(FALLING), "b": rows(FALLING)}).axes
    low, high = error.get_ylim()
    assert low < 8.0 < 9.0 < high < 12.0
    assert error.get_ylabel() == "cut above: up to 91"
    rises = rows([1.0, 50.0, 88.0, 90.0, 91.0, 92.0])
    rising = plot_overlay({"a": rises, "b": rises}).axes[0]
    assert 50.0 < rising.get_ylim()[0] < 90.0 < 92.0 < rising.get_ylim()[1]
    assert rising.get_ylabel() == "cut below: from 1"


@pytest.mark.parametrize(
    "errors", [[20.0, 18.0, 16.0, 14.0, 12.0, 10.0, 8.0], [50.0, 9.0, 9.0, 9.0, 9.0], [30.0]]
)
def test_nothing_is_cut_off_where_the_end_is_as_wide_or_flat(errors) -> None:
    error, _ = plot_overlay({"a": rows(errors), "b": rows(errors)}).axes
    low, high = error.get_ylim()
    assert low <= min(errors) <= max(errors) <= high
    assert error.get_ylabel() == ""


def test_one_line_alone_is_shown_whole() -> None:
    low, high = plot_overlay({"a": rows(FALLING)}).axes[0].get_ylim()
    assert low < 8.0 < 91.0 < high


def test_a_run_that_ends_far_above_does_not_hide_how_the_others_differ() -> None:
    diverged = rows([91.0, 90.0, 90.0, 90.0, 90.0, 90.0])
    error, _ = plot_overlay(
        {"a": rows(FALLING), "b": rows([91.0, 40.0, 9.0, 8.0, 8.0, 7.5]), "c": diverged}
    ).axes
    low, high = error.get_ylim()
    assert low < 7.5 < 9.0 < high < 20.0
    assert sorted(text.get_text() for text in error.texts) == ["7.50", "8.00", "90.00 ↑"]
    assert all(0 <= text.xyann[1] <= 1 for text in error.texts)
    best = rows([91.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    low, high = plot_overlay({"a": diverged, "b": diverged, "best": best}).axes[0].get_ylim()
    assert low < 1.0 < 90.0 < high  # the best is never left out


def test_of_runs_of_several_lengths_the_later_half_of_each_is_shown() -> None:
    short, long = [90.0, 50.0, 20.0], [90.0, 60.0, 40.0, 30.0, 12.0, 11.0, 10.0, 9.0]
    low, high = plot_overlay({"short": rows(short), "long": rows(long)}).axes[0].get_ylim()
    assert low < 9.0
    assert 20.0 < high < 50.0


def test_the_last_values_are_written_those_of_each_line() -> None:
    runs = {"a": rows(FALLING), "b": rows([90.0, 30.0, 10.0, 9.0, 8.26])}
    error, loss = plot_overlay(runs).axes
    assert sorted(values(error)) == [8.0, 8.26]
    assert sorted(values(loss)) == [pytest.approx(LOSS / 6, abs=1e-3), pytest.approx(LOSS / 5, abs=1e-3)]
    assert values(plot_run(rows(FALLING), "").axes[1]) == [8.0]


def test_a_value_that_is_no_number_is_not_an_end() -> None:
    _, (ax,) = panels(["loss"])
    ax.plot([0, 1, 2], [3.0, 1.0, float("nan")])
    ax.plot([0, 1], [float("inf"), float("nan")])
    show_ends(ax, ".3g")
    assert values(ax) == [1.0]
    _, (empty,) = panels(["loss"])
    cut_beginning(empty)
    show_ends(empty, ".3g")
    assert values(empty) == []


def test_runs_are_in_the_order_of_their_ends_and_look_different_without_colours() -> None:
    runs = {f"run {i}": rows([90.0, 50.0, float(1 + (7 * i) % 12)]) for i in range(12)}
    lines = plot_overlay(runs).axes[0].get_lines()
    ends = [line.get_ydata()[-1] for line in lines]
    assert ends == sorted(ends)
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 12


def boxes(figure: Figure) -> list[Any]:
    """Where the written values are, once all is laid out."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = [[Text.get_window_extent(text, renderer) for text in ax.texts] for ax in figure.axes]
    width, height = figure.canvas.get_width_height()
    assert all(b.x0 >= 0 and b.x1 <= width and b.y0 >= 0 and b.y1 <= height for ax in found for b in ax)
    return found


@pytest.mark.parametrize("count", [2, 5, 8])
def test_eight_runs_with_long_labels_and_ends_that_touch_can_be_read(count) -> None:
    label = "sam_rho 0.1, m 16, lr_schedule piecewise_02epochs, model resnet_tiny_gn, seed"
    runs = {f"{label} {i}": rows([91.0, 50.0, 10.0, 9.0, 8.0 + i / 100]) for i in range(count)}
    figure = plot_overlay(runs)
    for panel in boxes(figure):
        ordered = sorted(panel, key=lambda box: box.y0)
        assert all(above.y0 > below.y0 + 0.75 * below.height for below, above in pairwise(ordered))
    assert figure.axes[0].get_position().height > 0.3


def test_a_run_whose_targets_are_numbers_has_losses_of_all_splits_and_no_errors() -> None:
    loss, sharpness = plot_run(of_numbers(2.0), "").axes
    assert [line.get_label() for line in loss.get_lines()] == ["train", "validation", "test"]
    assert sharpness.get_title() == "one-step sharpness"


def test_such_runs_are_compared_by_their_loss_beside_others_by_their_error() -> None:
    runs = {"x": of_numbers(2.0), "y": of_numbers(1.0)}
    assert [ax.get_title() for ax in plot_overlay(runs).axes] == ["test loss", "training loss"]
    axes = plot_overlay(runs | {"z": rows(FALLING)}).axes
    assert [ax.get_title() for ax in axes] == ["test error (%)", "test loss", "training loss"]
    assert [[line.get_label() for line in ax.get_lines()] for ax in axes] == [
        ["z"],
        ["y", "x"],
        ["z", "y", "x"],
    ]


@pytest.mark.parametrize("heights", [[], [0.5], [0.5, 0.5, 0.5], [0.9, 0.2, 0.22, 0.21], [0.0, 0.2, 0.4]])
def test_heights_are_apart_in_the_same_order_and_stay_where_there_is_room(heights) -> None:
    placed = apart(heights, 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(sorted(placed)))
    assert sum(placed) == pytest.approx(sum(heights))
    for i, j in pairwise(sorted(range(len(heights)), key=lambda i: heights[i])):
        assert placed[i] < placed[j]
    if heights == [0.0, 0.2, 0.4]:
        assert placed == heights


def test_values_at_the_edge_stay_inside() -> None:
    assert apart([0.0, 0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1, 0.2])
    assert apart([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert sorted(apart([0.3] * 21, 0.1)) == pytest.approx([0.1 * i - 0.5 for i in range(21)])
