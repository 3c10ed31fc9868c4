"""Curves of own runs and of figures: their points, their looks, and when they are means."""

import json
import shutil
from pathlib import Path

import pytest

from lowland.report import gathered, page
from lowland.report.charts import (
    COLORS,
    DASHES,
    MOST_OF_FIGURE,
    board_of_figure,
    board_of_runs,
    look,
    mean_curve,
)
from lowland.report.gathered import FigureFiles
from report.parsed import Parsed

NAMES = {
    "training loss": ("train_loss", 1.0),
    "test error (%)": ("test_error", 100.0),
    "validation error (%)": ("validation_error", 100.0),
    "one-step sharpness, small radius": ("sharpness_small", 1.0),
}


def stored(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_points_are_those_of_the_metrics(own) -> None:
    view = Parsed(page(gathered([own]))).boards["runs"]["views"][0]
    names = [entry["name"] for entry in view["legend"]]
    assert names == ["erm-0", "erm-1", "sam-0", "sam-1"]
    assert [panel["y"] for panel in view["panels"] if not panel["more"]] == list(NAMES)
    for panel in view["panels"][: len(NAMES)]:
        name, factor = NAMES[panel["y"]]
        assert [one["of"] for one in panel["series"]] == [0, 1, 2, 3]
        for one in panel["series"]:
            rows = stored(own / names[one["of"]])
            assert [x for x, _ in one["points"]] == [row["epoch"] for row in rows]
            wanted = [factor * row[name] for row in rows]
            assert [y for _, y in one["points"]] == pytest.approx(wanted, rel=1e-5)


def test_means_over_seeds_are_offered_where_there_are_seeds(own) -> None:
    text = page(gathered([own]))
    view = Parsed(text).boards["runs"]["views"][1]
    assert view["name"] == "mean over 2 seeds"
    assert [entry["name"] for entry in view["legend"]] == ["sam_rho 0, 2 seeds", "sam_rho 0.1, 2 seeds"]
    (loss,) = [panel for panel in view["panels"] if panel["y"] == "training loss"]
    for one, name in zip(loss["series"], ("erm", "sam"), strict=True):
        a, b = ([row["train_loss"] for row in stored(own / f"{name}-{seed}")] for seed in (0, 1))
        for (_, mean, low, high), first, second in zip(one["points"], a, b, strict=True):
            assert mean == pytest.approx((first + second) / 2, rel=1e-5)
            assert [low, high] == pytest.approx(sorted((first, second)), rel=1e-5)


def test_nothing_is_said_of_means_with_one_seed(own, tmp_path) -> None:
    for name in ("erm-0", "sam-0"):
        shutil.copytree(own / name, tmp_path / name)
    text = page(gathered([tmp_path]))
    assert [view["name"] for view in Parsed(text).boards["runs"]["views"]] == ["by run"]
    assert "over seeds" not in text.replace(text[text.index("<script>") :], "").replace(
        text[text.index("<style>") : text.index("</style>")], ""
    )


def test_a_mean_is_where_all_seeds_are() -> None:
    assert mean_curve([[(0, 1.0), (1, 2.0), (2, 3.0)], [(0, 3.0), (2, 9.0)]]) == [
        (0, 2.0, 1.0, 3.0),
        (2, 6.0, 3.0, 9.0),
    ]


def test_a_run_that_diverged_says_so_and_has_no_points_there(own, tmp_path) -> None:
    shutil.copytree(own / "erm-0", tmp_path / "run")
    rows = stored(tmp_path / "run")
    rows[2]["train_loss"] = None
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (view,) = board_of_runs(gathered([tmp_path]).runs)["views"]
    assert view["legend"][0]["name"] == "run (no finite loss from epoch 2 on)"
    assert [x for x, _ in view["panels"][0]["series"][0]["points"]] == [0.0, 1.0]


def test_thirty_runs_look_different_and_seeds_of_a_kind_alike_in_colour() -> None:
    looks = {tuple(look(kind, seed).values()) for kind in range(COLORS) for seed in range(DASHES)}
    assert len(looks) == COLORS * DASHES
    assert {look(2, seed)["color"] for seed in range(5)} == {2}
    assert len({look(kind, 0)["dash"] for kind in range(4)}) == 4, "without colours too"


def test_curves_of_a_figure_are_means_over_its_seeds_and_say_so() -> None:
    rows = [
        {"method": "ERM", "rho": 0.0, "seed": s, "published": False, "epoch": float(e)}
        | {"train_loss": 10.0**-s}
        for s in (0, 1)
        for e in range(5 * MOST_OF_FIGURE)
    ]
    published = {"method": "ERM", "published": True, "epoch": 1.0, "train_loss": 99.0}
    (panel,) = panels_of([*rows, published])
    assert panel["y"] == "training loss, mean over 2 seeds"
    points = panel["series"][0]["points"]
    assert MOST_OF_FIGURE / 2 < len(points) <= MOST_OF_FIGURE + 1
    assert points[0] == (0.0, 0.55)
    assert points[-1][0] == 5 * MOST_OF_FIGURE - 1
    (panel,) = panels_of(rows[: 5 * MOST_OF_FIGURE])
    assert panel["y"] == "training loss", "of one seed it is no mean"


def panels_of(rows):
    return board_of_figure(FigureFiles(Path("it"), {}, b"", rows))["views"][0]["panels"]
