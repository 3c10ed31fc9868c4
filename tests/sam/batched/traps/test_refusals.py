"""What a refusal leaves behind, and how often it is said."""

import warnings

import pytest

from lowland import sam_gradient

from ..agreement import in_chunks_of
from ..models import trained
from .losses import item_of_an_activation
from .making import normed, plain, two_layers
from .outcomes import Unbatchable, assert_as_in_the_loop, run


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("call", range(1, 8))
@pytest.mark.parametrize("network", [normed, lambda: two_layers(plain)], ids=["batch norm", "plain"])
def test_chunk_that_is_refused_after_others_ran_counts_none_of_them_twice(network, call):
    """A loss that logs from time to time calls ``item`` in some passes only."""

    def make(call=call):
        module, loss, batch = network()
        calls = []

        def logs(x):
            value = loss(x)
            calls.append(1)
            if len(calls) == call:
                value.item()
            return value

        return module, logs, batch

    expected, loop_model = run("loop", lambda: make(call=0))
    with warnings.catch_warnings(), in_chunks_of(1):
        warnings.simplefilter("ignore")
        found, model = run("auto", make)
    assert_as_in_the_loop(found, model, expected, loop_model)


@pytest.mark.parametrize("handed", [True, False], ids=["module", "parameters"])
def test_every_call_is_refused_and_not_only_the_first(handed):
    module, loss, batch = item_of_an_activation()
    options = {"module": module if handed else None, "engine": "batched"}
    for _ in range(3):
        with pytest.raises(Unbatchable, match=r"by \.item\(\): .* \(\w+\.py, line \d+\)\.$"):
            sam_gradient(loss, trained(module), batch, rho=0.1, m=2, **options)


@pytest.mark.usefixtures("at_once")
def test_auto_warns_once_for_a_loss_and_not_in_every_step():
    module, loss, batch = item_of_an_activation()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(3):
            sam_gradient(loss, trained(module), batch, rho=0.1, m=2, module=module, engine="auto")
    (warning,) = heard
    assert "because of a value that is read from a tensor, by .item()" in str(warning.message)
