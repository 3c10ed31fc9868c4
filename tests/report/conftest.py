"""A figure that is made up, and own runs: small ones, made once."""

import dataclasses

import pytest

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.figures.paper.figure import Claim, PaperFigure
from lowland.figures.paper.files import drawn
from lowland.figures.style import panels
from lowland.sweeps import Here, Store, Training, carried_out
from sweeps.counted import Heard

TINY = TrainConfig(model="fc", model_width=8, epochs=2, batch_size=64, lr_max=0.05)


def tasks(_scale):
    return [Training(TINY), Training(dataclasses.replace(TINY, sam_rho=0.1))]


def data(runs, store):
    return [
        {
            "method": "SAM" if task.config.is_sam else "ERM",
            "seed": 0,
            "published": False,
            "rho": task.config.sam_rho,
        }
        | {"epoch": row["epoch"], "test_error": 100 * row["test_error"], "train_loss": row["train_loss"]}
        for task in runs
        for row in store.run(task).rows()
    ]


def plot(rows):
    figure, (ax,) = panels(["test error"])
    ax.plot([row["epoch"] for row in rows], [row["test_error"] for row in rows])
    return figure


def claims(_rows):
    return [
        Claim("SAM <b>is</b> & stays lower", "3 against 4 %", "2.00 ± 0.10, 10", 3, "agrees", -1.5, 0.5),
        Claim("ERM rises", "yes", "no", 3, "disagrees"),
        Claim("m matters", "yes", "perhaps", 3, "cannot be told", -9.0, 10.0),
    ]


FIGURE = PaperFigure(
    "made-up", "A <script>alert(1)</script> title", "Figure 0", tasks, data, plot, claims, "A note."
)


@pytest.fixture(scope="package")
def out(tmp_path_factory):
    """The made-up figure with its runs."""
    out = tmp_path_factory.mktemp("figures")
    runs = tasks("quick")
    place = Place("cpu", None, 1)
    assert carried_out(runs, Store(out / "runs"), Here(), place=place, watch=Heard()) == {}
    drawn(FIGURE, "quick", out)
    return out


@pytest.fixture(scope="package")
def own(tmp_path_factory):
    """Own runs by ERM and SAM, two seeds of each."""
    out = tmp_path_factory.mktemp("own")
    for seed in (0, 1):
        for rho in (0.0, 0.1):
            config = dataclasses.replace(TINY, sam_rho=rho, seed=seed)
            launch(config, out / f"{'sam' if rho else 'erm'}-{seed}", Place("cpu", threads=1), Control())
    return out
