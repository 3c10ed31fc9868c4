"""Kills a run with SIGKILL at random moments, resumes it each time, and compares it with an undisturbed run.

    python benchmarks/kill_and_resume.py --kills 20

Other options are those of the runs: ``--epochs 4``. Exits with 1 unless the final weights are the same bytes
and the metrics the same rows, times aside.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from forked import begun, done, ended, warmed_up
from lowland.cli import main as lowland

TRAIN = (
    "--dataset digits --frac_train 0.4 --p_label_noise 0.3 --model resnet_tiny --model_width 4 --epochs 8 "
    "--droprate 0.1 --sam_rho 0.1 --m 32 --l2_reg 0.0005 --sam_use_prev_batch --sgd_p_label_noise 0.1 "
    "--grad_gauss_std 0.001 --n_rm_pts 0.1 --epoch_rm_noise 0.5 --device cpu --threads 1 --quiet"
)


def main() -> int:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--checkpoint-every", help="seconds; by default at the end of each epoch")
    arguments, others = parser.parse_known_args()
    every = arguments.checkpoint_every
    options = _options([*others, *(["--checkpoint_every", every] if every else [])])
    warmed_up()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        started = time.monotonic()
        _finish(undisturbed, options)
        seconds = time.monotonic() - started
        print(f"undisturbed run: {seconds:.1f} s", flush=True)
        moments = random.Random(arguments.seed)
        kills = 0
        different = 0
        while kills < arguments.kills:
            if _killed(killed, options, moments.uniform(0.0, 0.6 * seconds)):
                kills += 1
                print(f"kill {kills:2d}, {_count(killed)} rows written", flush=True)
            else:
                different += _compare(undisturbed, killed, kills)
                shutil.rmtree(killed)
        _finish(killed, options)
        return different + _compare(undisturbed, killed, kills) and 1


def _options(others: list[str]) -> list[str]:
    """Those of ``TRAIN``, unless they are among the others, and the others."""
    usual = [option.split() for option in f" {TRAIN}".split(" --")[1:]]
    return [*(w for name, *of in usual if f"--{name}" not in others for w in (f"--{name}", *of)), *others]


def _killed(path: Path, options: list[str], delay: float) -> bool:
    """Starts or resumes the run and kills it after ``delay`` seconds; false if it finished before."""
    process = begun(lambda: lowland(_next(path, options)))
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    code = ended(process)
    if code > 0:
        raise SystemExit(f"the run failed with {code}")
    return code != 0


def _finish(path: Path, options: list[str]) -> None:
    code = done(lambda: lowland(_next(path, options)))
    if code != 0:
        raise SystemExit(f"the run failed with {code}")


def _count(path: Path) -> int:
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _compare(undisturbed: Path, killed: Path, kills: int) -> int:
    weights = [_digest(path / "model.safetensors") for path in (undisturbed, killed)]
    rows = [_rows(path / "metrics.jsonl") for path in (undisturbed, killed)]
    print(f"{'':14}{'undisturbed':>20}{f'after {kills} kills':>20}")
    print(f"{'final weights':14}{weights[0]:>20}{weights[1]:>20}")
    print(f"{'metric rows':14}{len(rows[0]):>20}{len(rows[1]):>20}")
    same = weights[0] == weights[1] and rows[0] == rows[1]
    for whole, again in zip(*rows, strict=False):
        for name in sorted({*whole, *again}):
            if whole.get(name) != again.get(name):
                print(f"epoch {whole['epoch']:g}: {name} is {whole.get(name)} and {again.get(name)}")
    print("weights and metrics are identical" if same else "DIFFERENT", flush=True)
    return 0 if same else 1


def _next(path: Path, options: list[str]) -> list[str]:
    resumable = (path / "config.json").exists()
    return ["train", "--resume", str(path)] if resumable else ["train", *options, "--out", str(path)]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _rows(path: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
