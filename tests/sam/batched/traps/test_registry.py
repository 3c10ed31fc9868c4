"""No trap's outcome is open: what is refused is refused for one cause, which its reason pins."""

import pytest

from . import test_every_trap  # noqa: F401 - registers all
from .registry import TRAPS, Exact, Refused, exact, refused

TOLD = (
    # Operations in place, layouts, weights
    "mul_, which changes the batch",
    "indexing, which writes to a tensor that all groups share",
    "torch.nn.utils' WeightNorm, which sets attributes (its parametrization does not)",
    "torch.nn.utils' SpectralNorm, which sets attributes (its parametrization does not)",
    "a tensor of the pass that is kept after it, as an attribute or in a list",
    "Tensor.data",
    "parameters that share their memory",
    "a parameter by another name, such as its .detach() from outside the loss",
    "a parameter in scripted or traced code, out of sight",
    # Losses
    "torch.autograd.grad inside the loss",
    "a gradient inside the loss",
    "a transform of torch.func inside the loss",
    "a result whose shape depends on the data, by cross_entropy",
    "a result whose shape depends on the data, by indexing",
    "a value that is read from a tensor, by .item()",
    "a value that is read from a tensor, by float()",
    "a value that is read from a tensor, by .numpy()",
    "equal, which torch.func.vmap cannot run",
    "Tensor.is_leaf",
    "Tensor.grad_fn",
    # Teachers
    "sum (Inference tensors do not track version counter.)",
    "what torch.func.vmap cannot run (Error(s) in loading state_dict for Linear:)",
    # Buffers
    "a buffer that is read after it was changed (batch norm with momentum=None?)",
    "running statistics that are read before they move",
    "a change of the buffer n",
    "normalize, which changes a buffer",
    "add_, which changes a buffer",
    "mul_, which changes a buffer",
    "lerp_, which changes a buffer",
    "copy_, which changes a buffer",
    "__ilshift__, which changes a buffer",
    "__ixor__, which changes a buffer",
    # Hooks and custom functions
    "backward hooks of a module, Linear",
    "backward hooks of a module",
    "Tensor.register_hook inside the loss",
    "a custom autograd.Function, Product",
    # What runs otherwise
    "hooks on saved tensors, tests.sam.batched.traps.otherwise.hooks_on_saved_tensors",
    "gru, which torch.func.vmap cannot run",
    "lstm, which torch.func.vmap cannot run",
    "pad_sequence, which torch.func.vmap cannot run",
    "an embedding with max_norm, which changes its weights",
    "an embedding with sparse gradients",
    "an embedding with scale_grad_by_freq",
    "clamp_, which changes a parameter",
    "an operation that changes a parameter in place",
)
"""What users are told, a sentence a cause; of torch's own words the first."""


def causes(outcome):
    return [said for said in TOLD if outcome.tells(said)]


@pytest.mark.parametrize("name", TRAPS)
def test_each_reason_tells_one_cause_from_all_others(name):
    for outcome in TRAPS[name].refusals():
        assert len(causes(outcome)) == 1, outcome.reason


def test_each_cause_is_one_of_a_trap():
    pinned = [cause for trap in TRAPS.values() for outcome in trap.refusals() for cause in causes(outcome)]
    assert set(pinned) == set(TOLD)


def test_only_half_precision_may_be_less_than_exact():
    outcomes = {name: (trap.usual, trap.without_module, trap.alone) for name, trap in TRAPS.items()}
    assert all(isinstance(o, Exact | Refused) for each in outcomes.values() for o in each)
    loose = {n for n, each in outcomes.items() for o in each if isinstance(o, Exact) and o.tolerance > 1e-10}
    assert loose == {"autocast_inside_the_loss"}


@pytest.mark.parametrize("reason", [".*", ".+", "", "(?s).*", "an? .*", r"\w+ \(.*\)", "linear .*", r"\D*"])
def test_a_reason_that_fits_any_refusal_is_not_registered(reason):
    before = dict(TRAPS)
    with pytest.raises(ValueError, match="must pin a cause"):
        refused(reason)(lambda: None)
    assert before == TRAPS


def test_a_name_is_registered_once():
    def counter():
        """As one of the buffers is called."""

    before = dict(TRAPS)
    for decorator in (exact, refused("a change of the buffer n")):
        with pytest.raises(ValueError, match="'counter' twice"):
            decorator(counter)
    assert before == TRAPS
