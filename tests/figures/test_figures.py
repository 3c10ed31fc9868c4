"""Figures by the data that they show."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lowland.errors import InputError
from lowland.figures.curves import draw_curves, plot_overlay, plot_run
from lowland.figures.label_noise import plot_label_noise
from lowland.figures.style import panels, save
from lowland.runs import Run

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"epoch": 0.0, "train_loss": 2.3, "test_loss": 2.4, "train_error": 0.9, "test_error": 0.8},
    {
        "epoch": 1.5,
        "train_objective": 1.6,
        "train_loss": 1.5,
        "test_loss": 1.7,
        "train_error": 0.5,
        "test_error": 0.6,
        "validation_error": 0.55,
        "train_error_noisy": 0.95,
        "swa_test_error": 0.7,
        "sharpness_small": 0.01,
        "sharpness_rho": 0.2,
    },
    {"epoch": 3.0, "train_loss": 0.5, "test_loss": 1.1, "train_error": 0.1, "test_error": 0.4},
]


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """The points of each line by its label."""
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        for line in axes.get_lines()
    }


def shown(rows: Rows, name: str, factor: float = 1.0) -> Any:
    return [pytest.approx((row["epoch"], factor * row[name])) for row in rows if name in row]


def test_a_runs_figure_shows_its_rows_and_only_what_was_measured() -> None:
    figure = plot_run(ROWS, "a title")
    loss, error, sharpness = map(lines, figure.axes)
    assert loss == {
        "objective": shown(ROWS, "train_objective"),
        "train": shown(ROWS, "train_loss"),
        "test": shown(ROWS, "test_loss"),
    }
    assert error == {
        "train": shown(ROWS, "train_error", 100),
        "train, flipped labels": shown(ROWS, "train_error_noisy", 100),
        "validation": shown(ROWS, "validation_error", 100),
        "test": shown(ROWS, "test_error", 100),
        "test, averaged weights": shown(ROWS, "swa_test_error", 100),
    }
    assert sharpness == {
        "small radius": shown(ROWS, "sharpness_small"),
        "training radius": shown(ROWS, "sharpness_rho"),
    }
    assert figure.get_suptitle() == "a title"


def test_what_was_not_measured_is_not_in_the_figure() -> None:
    _, error, sharpness = map(lines, plot_run([ROWS[0], ROWS[2]], "").axes)
    assert error.keys() == {"train", "test"}
    assert sharpness == {}


def test_a_legend_has_the_lines_names() -> None:
    axes = plot_run(ROWS, "").axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["objective", "train", "test"]


def test_an_overlay_has_one_line_per_run_in_each_panel() -> None:
    runs = {"ERM": ROWS, "SAM": ROWS[1:]}
    error, loss = map(lines, plot_overlay(runs).axes)
    assert error == {label: shown(rows, "test_error", 100) for label, rows in runs.items()}
    assert loss == {label: shown(rows, "train_loss") for label, rows in runs.items()}


def run_of(method: str, m: int, seed: int, errors: list[float]) -> Rows:
    own = {"method": method, "m": m, "seed": seed, "published": False}
    return [own | {"epoch": float(epoch), "test_error": error} for epoch, error in enumerate(errors)]


def test_methods_are_drawn_over_epochs_and_each_seed_at_the_end_over_m() -> None:
    runs = [
        run_of("ERM", 128, 0, [90.0, 40.0]),
        run_of("ERM", 128, 1, [90.0, 50.0]),
        run_of("128-SAM", 128, 1, [90.0, 22.0]),
        run_of("128-SAM", 128, 0, [90.0, 20.0]),
        run_of("1-SAM", 1, 0, [90.0, 12.0]),
        run_of("1-SAM", 1, 1, [90.0, 10.0]),
    ]
    figure = plot_label_noise([row for run in runs for row in run], [run[-1] for run in runs], "digits")
    curves, ends = figure.axes
    assert lines(curves) == {
        "ERM": [(0, 90), (1, 45)],
        "128-SAM": [(0, 90), (1, 21)],
        "1-SAM": [(0, 90), (1, 11)],
    }
    assert [tick.get_text() for tick in ends.get_xticklabels()] == ["128", "1"]
    drawn = [list(line.get_ydata()) for line in ends.lines]
    assert drawn[:2] == [[20.0, 12.0], [22.0, 10.0]]  # a line per seed
    assert [21.0] in drawn
    assert [11.0] in drawn
    assert [45.0, 45.0] in drawn  # the level of ERM
    assert "digits" in figure.get_suptitle()


def test_one_seed_is_drawn_without_a_spread() -> None:
    runs = [run_of("ERM", 128, 0, [90.0, 40.0]), run_of("1-SAM", 1, 0, [90.0, 12.0])]
    figure = plot_label_noise([row for run in runs for row in run], [run[-1] for run in runs], "digits")
    assert not any(ax.collections for ax in figure.axes)


def test_curves_are_written_into_the_run_and_nothing_else_is(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "x", {}, {})
    evaluated = {
        "full": True,
        "train_loss": 1.0,
        "train_error": 0.5,
        "validation_error": 0.5,
        "test_error": 0.5,
    }
    for row in ROWS:
        run.append({**evaluated, **row})
    before = {p.name for p in run.path.iterdir()}
    path = draw_curves(run.path)
    assert path == run.path / "curves.png"
    with Image.open(path) as picture:
        picture.load()
        assert min(picture.size) > 200
    assert {p.name for p in run.path.iterdir()} == before | {"curves.png"}


def test_curves_of_a_run_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no directory"):
        draw_curves(tmp_path / "x")


def test_a_run_without_a_row_has_an_empty_figure(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "x", {}, {})
    assert draw_curves(run.path).exists()


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_is_written_in_the_format_of_its_suffix(tmp_path: Path, suffix: str, start: bytes) -> None:
    save(plot_run(ROWS, "x"), tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_what_is_drawn_twice_is_the_same_file(tmp_path: Path, suffix: str) -> None:
    for name, hour in (("a", "1000000000"), ("b", "2000000000")):
        with pytest.MonkeyPatch.context() as clock:
            clock.setenv("SOURCE_DATE_EPOCH", hour)
            save(plot_run(ROWS, "x"), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_panels_stand_side_by_side_in_our_style() -> None:
    figure, axes = panels(["one", "two"], height=2.0)
    assert isinstance(figure, Figure)
    assert [ax.get_title() for ax in axes] == ["one", "two"]
    assert axes[0].get_position().x1 < axes[1].get_position().x0
    assert figure.get_figheight() == 2.0
