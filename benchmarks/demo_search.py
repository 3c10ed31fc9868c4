"""Whether m can be seen on the embedded digits, with each m at the radius that validation chooses.

    python benchmarks/demo_search.py                           # every setting, seeds 10 and 11
    python benchmarks/demo_search.py NAME --fresh 20 30        # radii chosen on 10 and 11, then 20 to 29

For each m radii are tried, each a factor times the one before, until the one with the lowest mean
validation error lies between two others. Nothing is chosen on the test set. Runs are kept, and a search that
was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowland.deep import Place, TrainConfig
from lowland.deep.records import TrainingSummary
from lowland.sweeps import Here, Store, Task, Training, carried_out, mean_and_deviation

MOST = 10
Tried = dict[float, dict[str, np.ndarray]]
"""By radius: validation and test error (%), and seconds, of every seed."""


@dataclass(frozen=True)
class Setting:
    """What is trained, the middle of the first radii of each m, and the factor between two of them."""

    options: Mapping[str, Any]
    radii: Mapping[int, float]
    factor: float = 1.5

    def config(self, m: int | None, rho: float, seed: int) -> TrainConfig:
        """A run; ERM without m."""
        return TrainConfig(**self.options, sam_rho=rho, m=m, seed=seed)


FC = {"dataset": "digits", "model": "fc", "n_layers": 2, "model_width": 256, "frac_train": 0.5}
FULL = {**FC, "frac_train": 0.44, "batch_size": 512, "epochs": 150, "lr_max": 0.3}
DEEP, WIDE = {"n_layers": 5, "model_width": 128}, {"n_layers": 1, "model_width": 2048}
SETTINGS = {
    "60 % wrong, full batch": Setting({**FULL, "p_label_noise": 0.6}, {512: 0.4, 8: 0.15, 1: 0.05}),
    "5 % of the data": Setting(
        {**FC, "frac_train": 0.055, "batch_size": 64, "epochs": 150}, {64: 0.3, 8: 0.15, 1: 0.05}
    ),
    "40 % wrong": Setting({**FC, "p_label_noise": 0.4}, {128: 0.3, 8: 0.15, 1: 0.05}),
    "22 % of the data, full batch": Setting(
        {**FC, "frac_train": 0.22, "batch_size": 256, "epochs": 150, "lr_max": 0.2},
        {256: 0.4, 8: 0.15, 1: 0.05},
    ),
    "40 % wrong, deep": Setting({**FC, **DEEP, "p_label_noise": 0.4}, {128: 0.2, 8: 0.1, 1: 0.04}),
    "20 % wrong, full batch": Setting({**FULL, "p_label_noise": 0.2}, {512: 0.4, 8: 0.15, 1: 0.05}),
    "40 % wrong, wide": Setting({**FC, **WIDE, "p_label_noise": 0.4}, {128: 0.3, 8: 0.15, 1: 0.05}),
    "20 % wrong": Setting({**FC, "p_label_noise": 0.2}, {128: 0.3, 8: 0.15, 1: 0.05}),
    "20 % wrong, full batch, 400 epochs": Setting(
        {**FULL, "p_label_noise": 0.2, "epochs": 400}, {512: 0.33, 8: 0.17}, 1.2
    ),
    "20 % wrong, full batch, lr 0.1": Setting(
        {**FULL, "p_label_noise": 0.2, "lr_max": 0.1, "epochs": 300}, {512: 0.45, 8: 0.22}, 1.3
    ),
}
FINELY = {
    "60 % wrong, full batch, finely": Setting(
        {**FULL, "p_label_noise": 0.6}, {512: 0.4, 8: 0.15, 1: 0.05}, 1.15
    ),
    "20 % wrong, full batch, finely": Setting(
        {**FULL, "p_label_noise": 0.2}, {512: 0.45, 8: 0.2, 1: 0.08}, 1.15
    ),
    "20 % wrong, full batch, m = 64": Setting({**FULL, "p_label_noise": 0.2}, {512: 0.39, 64: 0.3}, 1.2),
    "40 % wrong, finely": Setting({**FC, "p_label_noise": 0.4}, {128: 0.45, 8: 0.22, 1: 0.075}, 1.2),
}


class Quiet:
    """Is told of progress, and says what failed."""

    def on_start(self, task: Task) -> None:
        """Nothing."""

    def on_progress(self, task: Task, share: float) -> None:
        """Nothing."""

    def on_end(self, task: Task, failure: str | None, _: float) -> None:
        """A failure."""
        if failure:
            print("failed:", task.name, failure, flush=True)


class Search:
    """Runs, each made once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def errors(self, configs: Iterable[TrainConfig]) -> dict[str, np.ndarray]:
        """Validation and test error (%) of each run after its last epoch, and its seconds."""
        tasks = [Training(config) for config in configs]
        carried_out(tasks, self._store, Here(), place=Place("cpu", threads=1), watch=Quiet())
        rows = [self._store.run(task).read("summary.json", TrainingSummary)["last"] for task in tasks]
        times = self._store.times()
        found = {
            name: np.array([100.0 * row[f"{name}_error"] for row in rows]) for name in ("validation", "test")
        }
        return found | {"seconds": np.array([times[task.name] for task in tasks])}

    def tried(self, setting: Setting, m: int | None, seeds: Sequence[int]) -> Tried:
        """What each radius gives: more are tried until the best by validation is inside. ERM has none."""
        if m is None:
            return {0.0: self.errors(setting.config(None, 0.0, seed) for seed in seeds)}
        middle, factor = setting.radii[m], setting.factor
        found: Tried = {}
        todo = [middle / factor, middle, middle * factor]
        while todo and len(found) < MOST:
            for rho in map(rounded, todo):
                found[rho] = self.errors(setting.config(m, rho, seed) for seed in seeds)
            found = dict(sorted(found.items()))
            radii, best = list(found), best_of(found)
            todo = [best / factor] * (best == radii[0]) + [best * factor] * (best == radii[-1])
        return found


def rounded(rho: float) -> float:
    """To two digits."""
    return float(f"{rho:.2g}")


def best_of(found: Mapping[float, Mapping[str, np.ndarray]]) -> float:
    """The radius with the lowest mean validation error."""
    return min(found, key=lambda rho: float(found[rho]["validation"].mean()))


def shown(values: np.ndarray) -> str:
    """Mean and deviation."""
    mean, deviation = mean_and_deviation(values.tolist())
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def main() -> None:
    """Prints a line per setting and m, as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="settings; by default those without a second look")
    parser.add_argument("--seeds", type=int, nargs=2, default=(10, 12), help="the first, and beyond the last")
    parser.add_argument("--fresh", type=int, nargs=2, help="the same, of seeds on which nothing is chosen")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-search"))
    asked = parser.parse_args()
    search, seeds = Search(Store(asked.out)), range(*asked.seeds)
    print(
        "| setting | m | radii tried (chosen) | seeds | validation (%) | test (%) | − m = B | core-minutes |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in asked.names or SETTINGS:
        setting = (SETTINGS | FINELY)[name]
        whole: np.ndarray | None = None
        for m in (None, *setting.radii):
            tried = search.tried(setting, m, seeds)
            best = best_of(tried)
            made, told = list(tried.values()), seeds
            if asked.fresh:
                told = range(*asked.fresh)
                made = [search.errors(setting.config(m, best, seed) for seed in told)]
            found = made[0] if asked.fresh else tried[best]
            cells = [
                name,
                "ERM" if m is None else str(m),
                ", ".join(f"**{rho:g}**" if rho == best else f"{rho:g}" for rho in tried) if m else "",
                f"{told[0]}–{told[-1]}",
                shown(found["validation"]),
                shown(found["test"]),
                "" if m is None or whole is None else paired(found["test"] - whole),
                f"{sum(own['seconds'].sum() for own in made) / 60:.1f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
            if m is not None and whole is None:
                whole = found["test"]


def paired(differences: np.ndarray) -> str:
    """Mean of the differences over seeds, and its standard error."""
    return f"{differences.mean():+.1f} (s.e. {differences.std(ddof=1) / len(differences) ** 0.5:.1f})"


if __name__ == "__main__":
    main()
