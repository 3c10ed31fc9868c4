"""What a step of SAM takes in this checkout and in another one, both loaded into one process, in turns.

    git worktree add ../before SOME_COMMIT
    python benchmarks/two_checkouts.py ../before --rounds 41

In each round both make one step of the same network, engine and m, or search for the worst case. Prints the
medians and the quartiles of the ratio, this checkout over the other, within the rounds. Networks are those of
``networks.py``, and a tiny MLP 4-8-8-10 with 16 examples, where what is not the network counts most.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from interleaved import Step, measured, ratios
from networks import NETWORKS, Network, mlp

TINY = Network("tiny MLP", lambda _: mlp(4, 8, 8, 10), 8, 16, (4,), 10)
KINDS = {"SAM, m = B": (None, "loop"), "m = 1, loop": (1, "loop"), "m = 1, batched": (1, "batched")}
MEASURES = {"worst case, m = B": (None, "loop"), "worst case, m = 4": (4, "batched")}
"""Five steps of projected ascent."""


def main() -> None:
    """Prints a row per network and kind of step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--networks", nargs="+", default=["tiny", "mlp"], choices=["tiny", *NETWORKS])
    kinds = KINDS | MEASURES
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(kinds))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    here = Path(__file__).resolve().parents[1]
    libraries = {"this": loaded(here), "other": loaded(arguments.other.resolve())}
    print(f"{'':38}{'other, ms':>10}{'this / other':>14}{'quartiles':>16}")
    for name in arguments.networks:
        network = TINY if name == "tiny" else NETWORKS[name]
        for kind in arguments.kinds:
            made = measure_of if kind in MEASURES else step_of
            steps = {key: made(library, network, *kinds[kind]) for key, library in libraries.items()}
            times = measured(steps, arguments.rounds)
            low, middle, high = ratios(times, "this", "other")
            other = 1e3 * statistics.median(times["other"])
            print(
                f"{network.title[:22]:22}  {kind:14}{other:10.2f}{middle:14.3f}{low:9.3f}-{high:.3f}",
                flush=True,
            )


_own_modules: dict[ModuleType, dict[str, ModuleType]] = {}


def loaded(checkout: Path) -> ModuleType:
    """The library of a checkout; :func:`step_of` puts its modules back before each of its steps."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lowland"]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout / "src"))
    try:
        library = importlib.import_module("lowland")
        importlib.import_module("lowland.sharpness")
        for module in ("lowland.sam.batched.engine", "lowland.sam.batched.at_once"):  # either name
            if importlib.util.find_spec(module) is not None:
                importlib.import_module(module)
    finally:
        del sys.path[0]
    _own_modules[library] = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "lowland"}
    assert Path(library.__file__ or "").is_relative_to(checkout), library.__file__
    return library


def step_of(library: ModuleType, network: Network, m: int | None, engine: str) -> Step:
    """A step of SAM and SGD, everything made anew from the same seed."""
    torch.manual_seed(0)
    problem = network.problem(torch.device("cpu"))
    own = _own_modules[library]
    sys.modules.update(own)
    make: Callable[..., nn.Module] = library.SAM
    sam = make(problem.model, rho=0.05, m=m, engine=engine, max_memory=2**40)
    optimizer = torch.optim.SGD(problem.params, lr=1e-6)

    def step() -> None:
        sys.modules.update(own)  # some are imported only when they are needed
        optimizer.zero_grad()
        sam.backward(problem.loss, problem.x, problem.y)
        optimizer.step()

    return step


def measure_of(library: ModuleType, network: Network, m: int | None, engine: str) -> Step:
    """A search for the worst case, everything made anew from the same seed."""
    torch.manual_seed(0)
    problem = network.problem(torch.device("cpu"))
    own = _own_modules[library]
    sharpness: Any = own["lowland.sharpness"]
    search = sharpness.ProjectedAscent(steps=5)

    def step() -> None:
        sys.modules.update(own)
        batch = problem.x, problem.y
        sharpness.worst_case(
            problem.loss, problem.params, batch, rho=0.05, m=m, search=search, engine=engine, max_memory=2**34
        )

    return step


if __name__ == "__main__":
    main()
