"""Kills a run with SIGKILL at random moments, resumes it each time, and compares it with an undisturbed run.

    python benchmarks/kill_and_resume.py --kills 20

Exits with 1 unless the final weights are the same bytes and the metrics the same rows, times aside.
"""

import argparse
import hashlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = shlex.split(
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
    arguments = parser.parse_args()
    every = arguments.checkpoint_every
    options = TRAIN + (["--checkpoint_every", every] if every else [])
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        started = time.monotonic()
        subprocess.run(_command("--out", str(undisturbed), *options), check=True, stdout=subprocess.DEVNULL)
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
        subprocess.run(_next(killed, options), check=True, stdout=subprocess.DEVNULL)
        return different + _compare(undisturbed, killed, kills) and 1


def _killed(path: Path, options: list[str], delay: float) -> bool:
    """Starts or resumes the run and kills it after ``delay`` seconds; false if it finished before."""
    process = subprocess.Popen(_next(path, options), stdout=subprocess.DEVNULL)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if process.returncode != 0:
        raise SystemExit(f"the run failed with {process.returncode}")
    return False


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


def _command(*options: str) -> list[str]:
    return [sys.executable, "-m", "lowland", "train", *options]


def _next(path: Path, options: list[str]) -> list[str]:
    resumable = (path / "config.json").exists()
    return _command("--resume", str(path)) if resumable else _command("--out", str(path), *options)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _rows(path: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
