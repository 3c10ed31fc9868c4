"""How flat networks are that ERM and SAM found: 4,000 images of MNIST, three seeds, every measure.

    python benchmarks/erm_and_sam.py --data-dir DIR --out runs/erm_and_sam

Trains an MLP 784-512-512-10 for 40 epochs by ERM, 128-SAM (rho = 0.1 and 0.3) and 16-SAM (rho = 0.1),
measures the final networks on 1,024 training examples (curvature and suboptimality: on 256), and prints
means and standard deviations over the seeds, and Kendall's rank correlation with the test error over all
networks. Runs and numbers that are there already are taken as they are. About half an hour on one core.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.deep.flatness import FlatnessConfig
from lowland.deep.loading import load_subject
from lowland.deep.measures import measures
from lowland.deep.subject import SubjectOptions
from lowland.figures.sharpness import plot_densities, plot_sharpness
from lowland.figures.style import save
from lowland.runs import Run, read_lines
from lowland.runs.lines import append_line
from lowland.sharpness import SpectralDensity

METHODS = {
    "ERM": {},
    "128-SAM, ρ = 0.1": {"sam_rho": 0.1},
    "128-SAM, ρ = 0.3": {"sam_rho": 0.3},
    "16-SAM, ρ = 0.1": {"sam_rho": 0.1, "m": 16},
}
FOLDERS = ("erm", "sam128", "sam128r3", "sam16")
COMMON: dict[str, Any] = {
    "dataset": "mnist",
    "model": "fc",
    "model_width": 512,
    "n_layers": 2,
    "frac_train": 0.074,
    "no_data_augm": True,
    "epochs": 40,
    "batch_size": 128,
    "lr_max": 0.1,
    "lr_schedule": "piecewise",
}
RADII = (0.05, 0.1, 0.2, 0.4)
ASKED = [
    FlatnessConfig(rho=RADII, m=(1, 16, 128), search="projected"),
    FlatnessConfig(
        measure=("average-case", "one-step", "gradient-norm"), rho=RADII, m=(1, 128), scaling="element"
    ),
    FlatnessConfig(rho=(0.1, 0.3, 1.0), m=(128,), scaling="element", logit_norm=True, search="projected"),
    FlatnessConfig(measure=("eigenvalues", "trace", "density"), n_eval=256, products=40),
    FlatnessConfig(
        measure=("suboptimality",), n_eval=256, rho=(0.1,), m=(4, 16, 64, 256), steps=50, search="projected"
    ),
]


def main() -> None:
    """Trains, measures, prints two tables and writes two pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/erm_and_sam"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: dict[str, list[list[dict[str, Any]]]] = {}
    densities, errors = {}, {}
    for folder, (name, options) in zip(FOLDERS, METHODS.items(), strict=True):
        for seed in range(arguments.seeds):
            path = arguments.out / f"{folder}-seed{seed}"
            config = TrainConfig(**COMMON, **options, seed=seed)
            launch(config, path, Place("cpu", arguments.data_dir, arguments.threads), Control())
            errors.setdefault(name, []).append(Run.open(path).summary["last"]["test_error"])
            found, density = _measured(path, arguments.data_dir)
            rows.setdefault(name, []).append(found)
            densities.setdefault(name, density)
            print(f"{path} done", flush=True)
    _print(rows, errors)
    worst = {name: _worst_cases(seeds) for name, seeds in rows.items()}
    chosen = {
        n: [r for r in own if r["measure"] == "worst case" and not r["logit_norm"]]
        for n, own in worst.items()
    }
    save(plot_sharpness(chosen), arguments.out / "sharpness.png")
    save(plot_densities(densities), arguments.out / "density.png")


def _measured(path: Path, data_dir: Path | None) -> tuple[list[dict[str, Any]], SpectralDensity]:
    subject = load_subject(str(path), SubjectOptions(device="cpu", data_dir=data_dir))
    identity = {
        "network": subject.name,
        "kind": "last",
        "data": subject.data,
        "weights": subject.fingerprint(),
    }
    file = path / "sharpness.jsonl"
    rows, density = [], None
    for config in ASKED:
        known = [row for row in read_lines(file) if identity.items() <= row.items()]
        taken = measures(subject, config, known=known, on_row=lambda row: append_line(file, identity | row))
        rows += taken.rows
        if taken.densities:
            density = SpectralDensity(taken.densities["nodes"], taken.densities["weights"], 0, 0)
    assert density is not None
    return rows, density


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    units = "" if not row["logit_norm"] else ", |w| and logits' size"
    return row["measure"] + units, row.get("m"), row.get("rho")


def _worst_cases(seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows with the mean over the seeds, and their standard deviation as the error."""
    plain = [row for row in seeds[0] if row["measure"] == "worst case" and not row["logit_norm"]]
    found = []
    for row in plain:
        values = _values(seeds, _key(row), "value")
        found.append({**row, "value": np.mean(values), "stderr": np.std(values, ddof=1)})
    return found


def _values(seeds: list[list[dict[str, Any]]], key: tuple[Any, ...], name: str) -> list[float]:
    return [row[name] for rows in seeds for row in rows if _key(row) == key and row.get(name) is not None]


def _print(rows: dict[str, list[list[dict[str, Any]]]], errors: dict[str, list[float]]) -> None:
    print(f"\n| | m | ρ | {' | '.join(rows)} | τ |\n|---|---|---|{'---|' * (len(rows) + 1)}")
    print(f"| test error (%) | | | {' | '.join(_cell(100 * np.array(e)) for e in errors.values())} | |")
    every = [e for own in errors.values() for e in own]
    keys = dict.fromkeys(_key(row) for row in next(iter(rows.values()))[0])
    names = [(key, "value", key[0]) for key in keys]
    names += [
        (k, n, t)
        for k in keys
        if k[0] == "largest eigenvalue"
        for n, t in (("ratio", "λ₁/λ₅"), ("edge", "SAM edge"))
    ]
    for key, name, title in names:
        values = [_values(seeds, key, name) for seeds in rows.values()]
        flat = [v for own in values for v in own]
        tau = f"{kendalltau(flat, every).statistic:.2f}" if len(flat) == len(every) else ""
        _, m, rho = key
        cells = " | ".join(_cell(np.array(own)) for own in values)
        print(f"| {title} | {'' if m is None else m} | {'' if rho is None else rho} | {cells} | {tau} |")


def _cell(values: np.ndarray) -> str:
    if len(values) == 0:
        return "-"
    return f"{values.mean():.3g} ± {values.std(ddof=1):.1g}" if len(values) > 1 else f"{values.mean():.3g}"


if __name__ == "__main__":
    main()
