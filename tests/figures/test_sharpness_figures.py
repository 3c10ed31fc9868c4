"""Pictures of sharpness and landscapes, by what is in them."""

import numpy as np
import pytest

from lowland.figures.landscape import grid, plot_contour, plot_line, surface_html
from lowland.figures.sharpness import plot_densities, plot_sharpness
from lowland.sharpness import SpectralDensity


def test_sharpness_is_a_line_per_network_and_a_panel_per_measure() -> None:
    def rows(scale):
        return [
            {"measure": "worst case", "m": m, "rho": rho, "value": scale * rho * m, "stderr": 0.1 * rho}
            for m in (1, 16)
            for rho in (0.2, 0.1)
        ] + [{"measure": "trace", "value": 3.0, "stderr": None}]

    figure = plot_sharpness({"erm": rows(2.0), "sam": rows(1.0)})
    assert [ax.get_title() for ax in figure.axes] == ["worst case, m = 1", "worst case, m = 16"]
    line = figure.axes[1].containers[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [3.2, 6.4])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["erm", "sam"]
    assert figure.axes[0].get_yscale() == "log"
    zero = [{"measure": "worst case", "m": 1, "rho": 0.1, "value": 0.0, "stderr": None}]
    assert plot_sharpness({"flat": zero}).axes[0].get_yscale() == "linear"


def test_densities_integrate_to_one() -> None:
    nodes, weights = np.array([[0.0, 10.0]]), np.array([[0.75, 0.25]])
    (ax,) = plot_densities({"a": SpectralDensity(nodes, weights, 1, 1)}).axes
    x, y = ax.get_lines()[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1.0, abs=0.01)


def path(along):
    names = ("train_loss", "train_error", "test_loss", "test_error")
    return [{along: t, **dict.fromkeys(names, 0.5 + t)} for t in (0.0, 0.5, 1.0)]


def test_lines_have_both_splits_errors_in_percent_and_the_networks() -> None:
    figure = plot_line({"line": path("t")}, ends={"erm": 0.0, "sam": 1.0}, along="t", axis="t")
    loss, error = figure.axes
    np.testing.assert_allclose(error.get_lines()[0].get_ydata(), [50.0, 100.0, 150.0])
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["train", "test"]
    assert [t.get_text() for t in loss.texts] == ["erm", "sam"]
    both = plot_line({"straight": path("t"), "curve": path("t")}, ends={}, along="t", axis="t")
    assert len(both.axes[0].get_lines()) == 4


def surface(hole=None):
    return [
        {"x": x, "y": y, "train_loss": 10.0 ** (x + y) if (x, y) != hole else float("inf")}
        for y in (0.0, 1.0)
        for x in (-1.0, 0.0, 1.0)
    ]


def test_planes_are_put_on_their_grid_and_infinite_losses_are_gaps() -> None:
    x, y, z = grid(surface(hole=(0.0, 1.0)), "train_loss")
    np.testing.assert_array_equal(x, [-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(y, [0.0, 1.0])
    np.testing.assert_allclose(z, [[0.1, 1.0, 10.0], [1.0, np.nan, 100.0]])
    figure = plot_contour(surface(), "train_loss", title="loss", points={"erm": (0.0, 0.5)})
    assert figure.axes[0].texts[0].get_text() == "erm"
    plot_contour(surface(hole=(0.0, 1.0)), "train_loss", title="loss", points={})


def test_a_surface_page_holds_its_values_and_the_networks() -> None:
    page = surface_html(surface(), "train_loss", title="training loss", points={"erm": (0.0, 1.0)})
    assert '"erm"' in page
    assert "training loss" in page
    assert "log10 of train_loss" in page
