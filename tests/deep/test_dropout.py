"""Dropout as a function of the example's key, the layer and the place; who draws otherwise."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowland.deep import Ranks
from lowland.deep.criterion import CROSS_ENTROPY
from lowland.deep.draws import draws_of
from lowland.deep.models import Dropout, example_keys, masks_of
from lowland.sam.randomness import RandomState

from .room import make_data, make_state, run_steps, same_bits, small, weights

EXAMPLES, PLACES, STEPS = 64, 256, 40


def dropped(p, steps=STEPS, layers=1):
    """Which elements are dropped, of shape (steps, layers, examples, places)."""
    layer, ones = Dropout(p), torch.ones(EXAMPLES, PLACES)
    found = []
    for step in range(steps):
        with masks_of(example_keys(step, torch.arange(EXAMPLES))):
            found.append(torch.stack([layer(ones) == 0 for _ in range(layers)]))
    return torch.stack(found).double()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_right_over_all_and_of_each_step_example_and_place(p):
    masks = dropped(p)[:, 0]
    for kept in ((), (0,), (1,), (2,)):
        over = [dim for dim in range(3) if dim not in kept]
        rates = masks.mean(over)
        deviation = math.sqrt(p * (1 - p) / (masks.numel() / rates.numel()))
        assert (rates - p).abs().max() < 5 * deviation
        if kept:  # neither more alike than chance has it, nor less
            assert 0.75 < rates.std() / deviation < 1.25


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_examples_layers_places_and_steps_are_independent():
    masks = dropped(0.3, layers=2)
    limit = 5 / math.sqrt(masks.numel() / 4)
    assert abs(correlation(masks[1:], masks[:-1])) < limit
    assert abs(correlation(masks[:, 0], masks[:, 1])) < limit
    assert abs(correlation(masks[:, :, 1:], masks[:, :, :-1])) < limit
    assert abs(correlation(masks[..., 1:], masks[..., :-1])) < limit
    assert abs(correlation(masks[..., 16:], masks[..., :-16])) < limit


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    x = torch.randn(EXAMPLES, PLACES, dtype=torch.float64)
    with masks_of(example_keys(0, torch.arange(EXAMPLES))):
        y = Dropout(0.3)(x)
    kept = y != 0
    assert torch.allclose(y[kept], x[kept] / 0.7, rtol=1e-15)


def test_the_rate_one_drops_all_and_the_rate_zero_nothing():
    x = torch.randn(4, 3)
    with masks_of(example_keys(0, torch.arange(4))):
        assert torch.equal(Dropout(1.0)(x), torch.zeros(4, 3))
        assert torch.equal(Dropout(0.0)(x), x)
        assert torch.equal(Dropout(0.5).eval()(x), x)


def test_no_generator_is_drawn_from():
    before = RandomState.capture([])
    dropped(0.5, steps=1)
    assert before.is_now()


def test_under_vmap_groups_are_what_they_are_one_by_one():
    layer, x = Dropout(0.5), torch.randn(3, 4, 5, 2)
    keys = example_keys(3, torch.arange(12)).view(3, 4)

    def of_group(x, keys):
        with masks_of(keys):
            return layer(layer(x))

    one_by_one = torch.stack([of_group(*group) for group in zip(x, keys, strict=True)])
    assert torch.equal(torch.vmap(of_group)(x, keys), one_by_one)


def test_without_keys_or_a_row_for_each_example_it_is_the_layer_of_torch():
    layer, x = Dropout(0.5), torch.randn(6, 3)
    torch.manual_seed(0)
    wanted = F.dropout(x, 0.5)
    for keys in (None, example_keys(0, torch.arange(5))):
        torch.manual_seed(0)
        if keys is None:
            assert torch.equal(layer(x), wanted)
        else:
            with masks_of(keys):
                assert torch.equal(layer(x), wanted)


def test_the_keys_are_put_away_on_error():
    layer, x = Dropout(0.5), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="mine"), masks_of(example_keys(0, torch.arange(2))):
        raise RuntimeError("mine")
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(x, 0.5))


def test_engines_and_recorded_steps_see_the_same_masks():
    found = []
    for engine in ("loop", "batched"):
        state = make_state(droprate=0.5, sam_rho=0.1, m=2, engine=engine, dtype="float64", n_layers=2)
        run_steps(state, 7)
        found.append(torch.cat([w.flatten() for w in weights(state)]))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_dropout_of_the_groups_does_not_depend_on_m():
    """At radius 0.0 outside of SAM's window groups differ in nothing but their company."""
    states = []
    for m in (1, 4):
        state = make_state(droprate=0.5, sam_rho=0.1, m=m, sam_epoch_frac_start=0.9, dtype="float64")
        run_steps(state, 5)
        states.append(torch.cat([w.flatten() for w in weights(state)]))
    assert torch.allclose(*states, rtol=0, atol=1e-12)


class Checkpointed(nn.Module):
    """Runs its dropout anew on the way back."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        return checkpoint(self.inner, x.flatten(1), use_reentrant=False)


class Turned(nn.Module):
    """Its dropout has another first dimension than the examples."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(16, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.layer(x.flatten(1)).T).T


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("network", "keyed"),
    [(plain, True), (Checkpointed, False), (Turned, False)],
    ids=["plain", "checkpointed", "turned"],
)
def test_dropout_of_ones_own_is_keyed_where_nothing_else_draws(network, keyed):
    model, config = network(), small(model="own:net", model_width=None)
    before, training = RandomState.capture([]), [m.training for m in model.modules()]
    found = draws_of(config, model, make_data(), CROSS_ENTROPY, Ranks())
    assert (found.keyed, found.elsewhere) == (keyed, not keyed)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.Dropout)}
    assert kinds == {Dropout if keyed else nn.Dropout}
    assert before.is_now()
    assert [m.training for m in model.modules()] == training


def test_a_run_with_dropout_is_resumed_bit_for_bit_by_its_place_alone():
    options = {"droprate": 0.4, "sam_rho": 0.1, "m": 2}
    first, second = make_state(**options), make_state(**options)
    run_steps(first, 4)
    torch.manual_seed(12345)  # nothing of it is read
    run_steps(second, 4)
    assert same_bits(first.model.state_dict(), second.model.state_dict())
