"""What an engine that runs all groups at once gets silently wrong: each is exact here, or refused by name."""

import re
import warnings
from pathlib import Path

import pytest

from . import (
    buffers,
    custom_functions,
    hooks,
    in_place,
    layouts,
    losses,
    otherwise,
    teachers,
    weights,
)
from .outcomes import assert_as_in_the_loop, assert_refused, run
from .registry import TRAPS, Refused

HEADINGS = (
    in_place,
    layouts,
    weights,
    losses,
    teachers,
    buffers,
    hooks,
    custom_functions,
    otherwise,
)
"""The tenth, randomness, has tests of its own: there engines agree in distribution only."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook"),
]

LINE = r": [^\n]+ \(\w+\.py, line \d+\)"
"""The line of the loss, with its place."""

every_trap = pytest.mark.parametrize(
    "trap", TRAPS.values(), ids=[f"{t.heading}-{n}" for n, t in TRAPS.items()]
)


@pytest.mark.parametrize("module", [True, False], ids=["module", "parameters"])
@every_trap
def test_trap_is_exact_or_refused_as_it_says_and_leaves_nothing(trap, module):
    expected, loop_model = run("loop", trap.make, module)
    found, model = run("batched", trap.make, module)
    outcome = trap.usual if module else trap.without_module
    if isinstance(outcome, Refused):
        assert_refused(found, outcome)
    else:
        assert_as_in_the_loop(found, model, expected, loop_model, outcome.tolerance)


@every_trap
def test_one_group_of_everything_is_exact_or_refused_as_it_says(trap):
    """There a copy per group may be the parameter itself."""
    expected, loop_model = run("loop", trap.make, m=None)
    found, model = run("batched", trap.make, m=None)
    if isinstance(trap.alone, Refused):
        assert_refused(found, trap.alone)
    else:
        assert_as_in_the_loop(found, model, expected, loop_model, trap.alone.tolerance)


@pytest.mark.usefixtures("at_once")
@every_trap
def test_auto_is_the_loop_with_one_warning_that_names_what_was_refused(trap):
    expected, loop_model = run("loop", trap.make)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found, model = run("auto", trap.make)
    tolerance = 1e-10 if isinstance(trap.usual, Refused) else trap.usual.tolerance
    assert_as_in_the_loop(found, model, expected, loop_model, tolerance)
    ours = [str(w.message) for w in heard if "one after the other" in str(w.message)]
    if isinstance(trap.usual, Refused):
        (said,) = ours
        told = re.fullmatch(rf"the groups were run one after the other because of (.*?)({LINE})?\.", said)
        assert told is not None
        assert trap.usual.tells(told[1])
    else:
        assert not ours


def test_every_module_of_this_folder_with_traps_is_tested():
    written = {path.stem for path in Path(__file__).parent.glob("*.py") if _registers(path)}
    assert written == {trap.heading for trap in TRAPS.values()}
    assert len({heading.__name__ for heading in HEADINGS}) == len(written)


def _registers(path):
    return re.search(r"^@(exact|refused)\b", path.read_text(), re.MULTILINE) is not None
