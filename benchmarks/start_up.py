"""How long the command takes to answer, beside ``import torch``: processes of their own, in turns.

    python benchmarks/start_up.py [ROUNDS]

Prints median and quartiles of the seconds of each, and of the ratio to ``import torch`` within a round.
"""

import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import lowland": ("-c", "import lowland"),
    "lowland --help": ("-m", "lowland", "--help"),
    "lowland --version": ("-m", "lowland", "--version"),
    "lowland tarin": ("-m", "lowland", "tarin"),
    "lowland runs --help": ("-m", "lowland", "runs", "--help"),
    "lowland diagonal --help": ("-m", "lowland", "diagonal", "--help"),
    "lowland train --help": ("-m", "lowland", "train", "--help"),
}


def seconds(words: tuple[str, ...]) -> float:
    """Of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for round_ in range(rounds + 1):
        for name, words in PROGRAMS.items():
            taken = seconds(words)
            if round_ > 0:  # the first one fills the caches
                times[name].append(taken)
    print(f"{'':<26}{'seconds':>8}  {'quartiles':<14}{'ratio':>7}  quartiles")
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["import torch"], strict=True)]
        (low, middle, high), (least, ratio, most) = (statistics.quantiles(v, n=4) for v in (own, ratios))
        print(f"{name:<26}{middle:>8.3f}  {f'{low:.3f}-{high:.3f}':<14}{ratio:>7.3f}  {least:.3f}-{most:.3f}")


if __name__ == "__main__":
    main()
