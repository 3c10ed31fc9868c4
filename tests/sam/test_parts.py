"""Parts of the user's: told when a call begins and went well, put back when it fails, saved by name."""

import functools

import pytest
import torch

from lowland import L2, SAM, SAMOptimizer
from lowland.sam import (
    BSAM,
    BayesianAscent,
    DecoupledWeighted,
    Friendly,
    FromLoader,
    Look,
    Part,
    PreviousBatch,
)
from lowland.sam.part import Parts

from .naive import bits, mlp, naive_sam, regression, relative_error, squared


def loss_of(module):
    return functools.partial(squared, module)


def by_sam(module, **parts):
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    sam = SAM(module, rho=parts.pop("rho", 0.3), **parts)

    def step(loss, batch):
        base.zero_grad()
        sam.backward(loss, *batch)
        base.step()

    return sam, step


def by_closure(module, **parts):
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    sam = SAMOptimizer(base, rho=parts.pop("rho", 0.3), **parts)

    def step(loss, batch):
        def closure():
            sam.zero_grad()
            value = loss(*batch)
            value.backward()
            return value

        sam.step(closure)

    return sam, step


both = pytest.mark.parametrize("made", [by_sam, by_closure], ids=["SAM", "SAMOptimizer"])


class Told:
    """What a part may be told of, in plain methods of a plain class."""

    def __init__(self):
        self.calls = []
        self.norms = []

    def begin(self, call):
        self.calls = [*self.calls, (call.step, call.climbs, call.begins)]

    def end(self, call):
        self.norms.append(torch.stack([g.norm() for g in call.gradients]).norm().item())


class Schedule(Told):
    def __call__(self, step):
        return 0.3 * (step % 2)


class Ascent(Told):
    def __call__(self, step):
        return L2()(step)


class Rule(Told):
    def __call__(self, gradient, perturbed):
        return [2 * p - g for g, p in zip(gradient, perturbed, strict=True)]


PARTS = {"rho": Schedule, "ascent": Ascent, "combine": Rule}


@both
@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_told_of_every_call(made, name):
    module, part = mlp(), PARTS[name]()
    _, step = made(module, **{name: part})
    for i in range(3):
        step(loss_of(module), regression(i))
    climbs = [False, True, False] if name == "rho" else [True] * 3
    assert part.calls == [(i, climbed, True) for i, climbed in enumerate(climbs)]
    assert len(part.norms) == 3
    assert part.norms[-1] == pytest.approx(
        torch.stack([p.grad.norm() for p in module.parameters()]).norm().item()
    )


@both
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("failing", [1, 2])
def test_part_is_what_it_was_if_the_call_fails(made, name, failing):
    module, part, calls = mlp(), PARTS[name](), []
    _, step = made(module, **{name: part})
    for i in range(2):
        step(loss_of(module), regression(i))
    if name == "rho":
        part.__class__ = type("Always", (Schedule,), {"__call__": lambda *_: 0.3})
    kept = dict(vars(part)), list(part.calls), list(part.norms)

    def fails(x, y):
        calls.append(None)
        if len(calls) == failing:
            raise RuntimeError("stop")
        return squared(module, x, y)

    with pytest.raises(RuntimeError, match="stop"):
        step(fails, regression(2))
    assert vars(part) == kept[0]
    assert (part.calls, part.norms) == kept[1:]


@both
def test_part_that_fails_at_the_end_takes_the_others_with_it(made):
    """Friendly has taken its average by then, and the rule has been called."""

    class Fails(Rule):
        def end(self, call):
            super().end(call)
            raise RuntimeError(f"stop after {call.step}")

    module, friendly, rule = mlp(), Friendly(), Fails()
    sam, step = made(module, ascent=friendly, combine=rule)
    before = [bits(p) for p in module.parameters()]
    with pytest.raises(RuntimeError, match="stop after 0"):
        step(loss_of(module), regression())
    assert (friendly.state_dict(), rule.calls, rule.norms) == ({"average": None}, [], [])
    assert sam.steps_done == 0
    assert [bits(p) for p in module.parameters()] == before
    assert all(p.grad is None for p in module.parameters())


@both
def test_any_part_may_skip_a_climb_and_say_what_to_train_with(made):
    class EveryOther(Part):
        def __call__(self, step):
            return L2()(step)

        def begin(self, call):
            if call.step % 2:
                call.instead = lambda gradient: [3 * g for g in gradient]

    module, calls = mlp(), []
    _, step = made(module, ascent=EveryOther())

    def loss(x, y):
        calls.append(None)
        return squared(module, x, y)

    step(loss, regression(0))
    assert len(calls) == 2
    expected = naive_sam(module, squared, regression(1), rho=0.0).gradients
    step(loss, regression(1))
    assert len(calls) == 3
    assert relative_error([p.grad for p in module.parameters()], [3 * g for g in expected]) < 1e-12


def test_ascent_that_remembers_is_given_the_mean_of_the_climbs_gradients_and_needs_nothing_else():
    class Remembers:
        seen = None

        def __call__(self, step):
            return L2()(step)

        def remember(self, gradients):
            self.seen = gradients

    module, batch, ascent = mlp(), regression(), Remembers()
    expected = naive_sam(module, squared, batch, rho=0.0, m=3).gradients
    SAM(module, rho=0.3, m=3, ascent=ascent).backward(loss_of(module), *batch)
    assert relative_error(ascent.seen, expected) < 1e-12
    assert SAM(module, rho=0.3, ascent=ascent).state_dict() == {"step": 0}


def test_source_is_not_told_of_a_call_that_brings_its_own_examples():
    module, source = mlp(), PreviousBatch()
    sam = SAM(module, rho=0.3, source=source)
    sam.backward(loss_of(module), *regression(0))
    sam.backward(loss_of(module), *regression(1), ascent_batch=regression(2))
    assert torch.equal(source.state_dict()["previous"][0], regression(0)[0])


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_call_that_is_made_again_climbs_on_the_batches_that_it_drew(k, shuffled):
    """Also in the midst of a round, and across its end: a loader does not go back."""
    x, y = regression(1, examples=4)
    data = torch.utils.data.TensorDataset(x, y)

    def trained(failures):
        torch.manual_seed(0)
        module, failing = mlp(), []
        source = FromLoader(torch.utils.data.DataLoader(data, batch_size=1, shuffle=shuffled), k)
        _, step = by_sam(module, source=source)

        def loss(x, y):
            if failing:
                raise RuntimeError(failing.pop())
            return squared(module, x, y)

        for i in range(5):
            for _ in range(failures):
                failing.append("stop")
                with pytest.raises(RuntimeError, match="stop"):
                    step(loss, regression(i))
            step(loss, regression(i))
        return [bits(p) for p in module.parameters()]

    assert trained(2) == trained(0)


def test_part_is_refused_where_it_is_of_no_use_by_name():
    module = mlp()
    base = torch.optim.SGD(module.parameters(), lr=0.1)

    class Mine(Part):
        ways = ("objective",)

        def __call__(self, step):
            return L2()(step)

    batch = regression()
    with pytest.raises(ValueError, match=r"^Mine must be used with objective, got backward\.$"):
        SAM(module, rho=0.3, ascent=Mine()).backward(loss_of(module), *batch)
    with pytest.raises(TypeError, match=r"got Mine: use lowland\.SAM\.$"):
        SAMOptimizer(base, rho=0.3, ascent=Mine())
    optimizer = SAMOptimizer(base, rho=0.3, combine=Look(3))
    squared(module, *batch).backward()
    message = r"^Look must be used with backward, objective or step\(closure\), got first_step\.$"
    with pytest.raises(ValueError, match=message):
        optimizer.first_step()
    with pytest.raises(TypeError, match=r"got DecoupledWeighted: use lowland\.SAM"):
        optimizer.combine = DecoupledWeighted(0.9, base)


@both
def test_state_of_another_part_is_refused_by_name_and_loads_nothing(made):
    module = mlp()
    saved, step = made(module, ascent=Friendly(), combine=Look(2))
    step(loss_of(module), regression())
    state = saved.state_dict()
    own = state.get("sam", state)

    class Mine(Look):
        def load_state_dict(self, state):
            self.found = state["found"]

    friendly = Friendly()
    other, _ = made(module, ascent=friendly, combine=Mine(2))
    message = r"^state of combine must be that of Mine, got one with \['direction'\] and without 'found'\.$"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert friendly.state_dict() == {"average": None}
    assert other.steps_done == 0
    keys = r"^state must have the keys \['step'\], got \['ascent', 'combine', 'step'\]\.$"
    with pytest.raises(ValueError, match=keys):
        made(module)[0].load_state_dict(state)
    assert own["step"] == 1


def test_parts_without_a_state_have_none():
    module = mlp()
    bayesian = BayesianAscent(BSAM(module.parameters(), 0.1, num_examples=9))
    assert Parts(rho=0.1, ascent=bayesian, source=None, combine=sum).state_dict() == {}


def test_batch_that_the_loss_changes_is_kept_as_it_was_given():
    module, (x, y), source = mlp(), regression(), PreviousBatch()
    given = x.clone()

    def loss(x, y):
        x.mul_(2.0)
        return squared(module, x, y)

    SAM(module, rho=0.3, source=source).backward(loss, x, y)
    assert torch.equal(source.state_dict()["previous"][0], given)
    assert torch.equal(x, 2.0 * given)
