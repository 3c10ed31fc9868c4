"""The picture of a sweep: its points, where they are and what they are called."""

import numpy as np
import pytest

from lowland.figures.sweep import plot_sweep
from lowland.sweeps import Point


def line(figure, label):
    """Places, means and half lengths of the bars."""
    (ax,) = figure.axes
    (found,) = [box for box in ax.containers if box.get_label() == label]
    line, _, (bars,) = found
    lengths = [np.ptp(np.asarray(s)[:, 1]) / 2 for s in bars.get_segments()]
    return list(line.get_xdata()), list(line.get_ydata()), lengths


def test_a_radius_is_the_axis_and_the_rest_tells_lines_apart() -> None:
    points = [
        Point({"sam_rho": rho, "m": m}, (0.1 * rho, 0.1 * rho + 0.02), (0.0,))
        for m in (4, 16, 64, 128)
        for rho in (0.4, 0.1)
    ]
    figure = plot_sweep(
        [*points, Point({"sam_rho": 0.0, "m": None}, (0.3,), (0.0,), is_erm=True)], "test_error"
    )
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sam_rho", "test error (%)")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0 (ERM)", "0.1", "0.4"]
    places, means, lengths = line(figure, "m 16")
    assert places == pytest.approx([1, 2], abs=0.2)
    assert means == pytest.approx([2.0, 5.0])
    assert lengths == pytest.approx([100 * 0.02 / 2**0.5] * 2)
    (place,), mean, _ = line(figure, "ERM")
    assert mean == [30.0]
    assert place == pytest.approx(0, abs=0.2)
    drawn = [line(figure, f"m {m}")[0][0] for m in (4, 16, 64, 128)]
    assert drawn == sorted(set(drawn)), "side by side"


def test_without_a_radius_the_number_with_the_most_values_is_the_axis_and_a_loss_is_no_share() -> None:
    points = [
        Point({"model": model, "lr_max": rate}, (2.0,), (0.0,))
        for model in ("fc", "cnn")
        for rate in (1.0, 0.5, 0.25)
    ]
    (ax,) = plot_sweep(points, "test_loss").axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("lr_max", "test loss")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.25", "0.5", "1"]
    names = plot_sweep([Point({"model": m}, (0.1,), (0.0,)) for m in ("fc", "cnn")], "test_error")
    assert [text.get_text() for text in names.axes[0].get_xticklabels()] == ["fc", "cnn"]
    assert not names.legends


def test_a_single_point_is_drawn() -> None:
    (ax,) = plot_sweep([Point({}, (0.1, 0.3), (0.0, 0.0))], "test_error").axes
    assert ax.containers[0].lines[0].get_ydata() == pytest.approx([20.0])


def test_erm_is_told_apart_by_what_it_reads_and_only_where_there_is_a_radius() -> None:
    points = [
        Point({"sam_rho": rho, "lr_max": rate, "m": m}, (0.1,), (0.0,), is_erm=rho == 0.0)
        for rate in (0.1, 0.2)
        for rho, m in ((0.0, None), (0.1, 4))
    ]
    (ax,) = plot_sweep(points, "test_error").axes
    labels = [box.get_label() for box in ax.containers]
    assert labels == ["ERM, lr_max 0.1", "lr_max 0.1, m 4", "ERM, lr_max 0.2", "lr_max 0.2, m 4"]
    plain = [Point({"lr_max": rate}, (0.1,), (0.0,), is_erm=True) for rate in (0.1, 0.2)]
    (ax,) = plot_sweep(plain, "test_error").axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "0.2"]
