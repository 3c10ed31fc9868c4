"""Whatever raises, and wherever: everything is as before the call, and the call can be made again."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrize

from lowland import SAM, sam_gradient
from lowland.presets import PRESETS
from lowland.sam import BSAM, L2, FromLoader, MicroBatches, weights_are_perturbed

from .halves import fitting_loss
from .naive import bits, identity, regression, rows, seeded

ERRORS = [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError]
BATCH, FIRST_BATCH = regression(1, examples=8), regression(2, examples=8)


def network():
    """Batch norm, whose buffers count and move, and dropout, which draws."""
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)]
    return seeded(nn.Sequential(*layers))


def options_of(name, optimizer):
    return {
        "n_sam": {"loader": [rows(FIRST_BATCH, 0, 5), rows(FIRST_BATCH, 5, 8)]},
        "multi_step": {"steps": 2},
        "momentum_sam": {"optimizer": optimizer},
        "preconditioned_sam": {"optimizer": optimizer},
        "bsam": {"optimizer": optimizer},
        "gsam": {"optimizer": optimizer, "max_rho": 0.4, "max_lr": 0.1},
        "wsam_decoupled": {"optimizer": optimizer},
        "look_sam": {"k": 2},
        "m_sam": {"m": 4},
    }.get(name, {})


class Session:
    """A model in training: its first step is done, so that every part remembers something."""

    def __init__(self, name, *, steps_done=1, **options):
        torch.manual_seed(0)
        self.module = network()
        params = self.module.parameters()
        if name == "bsam":
            self.optimizer = BSAM(params, lr=0.1, num_examples=8)
            for p in self.module.parameters():
                self.optimizer.scale(p)  # its state begins when it is first asked for
        elif name == "preconditioned_sam":
            self.optimizer = torch.optim.Adam(params, lr=0.01)
        else:
            self.optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        options = {"m": 4, **options_of(name, self.optimizer), **options}
        self.sam = PRESETS[name](self.module, **options)
        for _ in range(steps_done):
            self.sam.backward(self.loss(), *FIRST_BATCH)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def loss(self, failing=None, *, error=RuntimeError, backward=False, calls=None):
        """A loss that fails in its ``failing``-th call, or in the backward pass of it."""
        calls = [] if calls is None else calls

        def fail(_):
            raise error("stop")

        def loss(x, y):
            calls.append(None)
            out = self.module(x)
            if len(calls) == failing:
                self.module[1].eval()
                if not backward or not out.requires_grad:
                    fail(out)
                out.register_hook(fail)
            return (out - y).square().mean()

        return fitting_loss(self.sam, loss)

    def everything(self):
        """All that a call could leave changed."""
        params = list(self.module.parameters())
        return {
            "weights": identity(params),
            "requires_grad": [p.requires_grad for p in params],
            "grad": [None if p.grad is None else (id(p.grad), bits(p.grad)) for p in params],
            "buffers": {k: (bits(b), b.data_ptr()) for k, b in self.module.named_buffers()},
            "modes": [m.training for m in self.module.modules()],
            "generator": bits(torch.get_rng_state()),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
            "grad mode": torch.is_grad_enabled(),
            "perturbed": weights_are_perturbed(),
            "caches": dict(parametrize._cache),
            "hooks": (
                dict(module_hooks._global_forward_pre_hooks),
                [dict(p._backward_hooks or {}) for p in params],
                [dict(m._forward_pre_hooks) for m in self.module.modules()],
            ),
            "optimizer": frozen(self.optimizer.state_dict()),
        }

    def progress(self):
        """What the SAM remembers."""
        return self.sam.steps_done, frozen(self.sam.state_dict())


def frozen(element):
    """A nested state as bytes that can be compared."""
    if isinstance(element, torch.Tensor):
        return bits(element)
    if isinstance(element, dict):
        return {key: frozen(value) for key, value in element.items()}
    if isinstance(element, (list, tuple)):
        return [frozen(value) for value in element]
    return element


@functools.cache
def number_of_calls(name):
    session, calls = Session(name), []
    session.sam.backward(session.loss(calls=calls), *BATCH)
    return len(calls)


@pytest.mark.parametrize("name", PRESETS)
def test_error_in_any_pass_of_any_preset_leaves_everything_as_before_the_call(name):
    calls = number_of_calls(name)
    assert calls >= 2
    for failing in range(1, calls + 1):
        session, error = Session(name), ERRORS[failing % 3]
        backward = failing % 2 == 0
        if failing > 1:
            for p in session.module.parameters():
                p.grad = torch.zeros_like(p) if failing % 3 else torch.full_like(p, 3.0)
        before, progress = session.everything(), session.progress()
        with pytest.raises(error, match="stop"):
            session.sam.backward(session.loss(failing, error=error, backward=backward), *BATCH)
        after = session.everything()
        assert [key for key in before if before[key] != after[key]] == [], f"pass {failing}"
        assert session.progress() == progress, f"pass {failing}"


def after_two_steps(session):
    """Weights and memory after the batch's step and one more."""
    for batch in (BATCH, FIRST_BATCH):
        session.sam.backward(session.loss(), *batch)
        session.optimizer.step()
        session.optimizer.zero_grad()
    return bits(torch.cat([p.flatten() for p in session.module.parameters()])), session.progress()


@pytest.mark.parametrize("steps_done", [0, 1])
@pytest.mark.parametrize("name", PRESETS)
def test_call_that_is_made_again_after_a_failure_trains_as_if_it_had_not_failed(name, steps_done):
    expected = after_two_steps(Session(name, steps_done=steps_done))
    session = Session(name, steps_done=steps_done)
    for failing in (1, 2):
        with pytest.raises(RuntimeError, match="stop"):
            session.sam.backward(session.loss(failing), *BATCH)
    assert after_two_steps(session) == expected


def test_batches_that_a_failed_climb_drew_are_drawn_again():
    parts = [rows(FIRST_BATCH, i, i + 2) for i in range(0, 8, 2)]

    def trained(failures):
        session = Session("sam", steps_done=0)
        session.sam.source = FromLoader(parts, num_batches=1)
        for _ in range(failures):
            with pytest.raises(RuntimeError, match="stop"):
                session.sam.backward(session.loss(1), *BATCH)
        return after_two_steps(session)

    assert trained(failures=1) == trained(failures=0)


class FailingAscent:
    """Climbs, until it is asked once too often."""

    def __init__(self, failing, error):
        self.failing, self.error, self.asked = failing, error, 0

    def __call__(self, step):
        self.asked += 1
        if self.asked == self.failing:
            raise self.error("stop")
        return L2()(step)


class FailingBlindAscent(FailingAscent):
    random = True

    def without_gradient(self, weights):
        self.asked += 1
        if self.asked == self.failing:
            raise self.error("stop")
        noise = weights.noise.generator(torch.device("cpu"))
        return [torch.rand(w.shape, generator=noise, dtype=w.dtype) for w in weights.w]

    __call__ = None


class FailingRule:
    def __init__(self, error):
        self.error = error

    def __call__(self, gradient, perturbed):
        raise self.error(f"stop after {len(gradient)} and {len(perturbed)}")


class FailingSource:
    def __init__(self, error):
        self.error = error

    def ascent_batch(self, batch):
        raise self.error(f"stop before {len(batch)}")


def parts_that_fail(error):
    yield rows(FIRST_BATCH, 0, 4)
    raise error("stop")


def weight_that_fails(error):
    calls = []

    def weight(x, _):
        calls.append(None)
        if len(calls) > 3:
            raise error("stop")
        return len(x)

    return weight


def schedule_that_fails(error):
    def rho(step):
        raise error(f"stop at {step}")

    return rho


ELSEWHERE = {
    "ascent": lambda error: {"ascent": FailingAscent(1, error)},
    "ascent of the second group": lambda error: {"ascent": FailingAscent(2, error)},
    "second step": lambda error: {"ascent": FailingAscent(2, error), "steps": 2},
    "blind ascent": lambda error: {"ascent": FailingBlindAscent(2, error)},
    "rule": lambda error: {"combine": FailingRule(error)},
    "source": lambda error: {"source": FailingSource(error)},
    "weight": lambda error: {"weight": weight_that_fails(error)},
    "radius": lambda error: {"rho": schedule_that_fails(error)},
}


@pytest.mark.parametrize(("way", "error"), [("backward", e) for e in ERRORS] + [("objective", ValueError)])
@pytest.mark.parametrize("place", ELSEWHERE)
def test_error_of_any_part_leaves_everything_as_before_the_call(place, way, error):
    session = Session("sam", **ELSEWHERE[place](error), steps_done=0)
    before, progress = session.everything(), session.progress()
    with pytest.raises(error, match="stop"):
        getattr(session.sam, way)(session.loss(), *BATCH)
    after = session.everything()
    assert [key for key in before if before[key] != after[key]] == []
    assert session.progress() == progress


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_the_parts_of_the_climb_leaves_everything_as_before_the_call(error):
    session = Session("sam")
    before, progress = session.everything(), session.progress()
    with pytest.raises(error, match="stop"):
        session.sam.backward(session.loss(), *BATCH, ascent_batch=MicroBatches(parts_that_fail(error)))
    assert [k for k, v in session.everything().items() if v != before[k]] == []
    assert session.progress() == progress


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("name", PRESETS)
def test_hook_that_fails_while_gradients_are_added_leaves_everything_as_before_the_call(name, register):
    """It fails last: after all passes, after the rule, and after some of the gradients were added."""
    for steps_done in (0, 1):
        session = Session(name, steps_done=steps_done)
        trained = [p for p in session.sam.params if p.requires_grad]
        for p in trained[1:]:
            p.grad = torch.zeros_like(p)
        before, progress = session.everything(), session.progress()
        grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in trained]

        def fails(*_):
            raise ValueError("stop")

        handle = getattr(trained[0], register)(fails)
        with pytest.raises(ValueError, match="stop"):
            session.sam.backward(session.loss(), *BATCH)
        handle.remove()
        for p, (grad, value) in zip(trained, grads, strict=True):
            assert p.grad is grad
            assert grad is None or torch.equal(grad, value)
        assert [k for k, v in session.everything().items() if v != before[k]] == []
        assert session.progress() == progress, f"after {steps_done} steps"


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_diagnostics_after_a_failure_are_those_of_the_call_before(failing):
    session = Session("sam", diagnostics=True)
    before = session.sam.last_diagnostics
    with pytest.raises(RuntimeError, match="stop"):
        session.sam.backward(session.loss(failing), *BATCH)
    assert session.sam.last_diagnostics is before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_half_weights_and_the_draws_of_their_rounding_come_back(dtype, failing):
    module, calls = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).to(dtype), []
    before, generator = identity(module), torch.get_rng_state()

    def loss(x, y):
        calls.append(None)
        if len(calls) == failing:
            raise RuntimeError("stop")
        return (module(x.to(dtype)).float() - y.float()).square().mean()

    with pytest.raises(RuntimeError, match="stop"):
        SAM(module, rho=0.4, m=4).backward(loss, *BATCH)
    assert identity(module) == before
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_rows_of_a_sparse_table_come_back(failing):
    table, head, calls = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1), []
    params = [*table.parameters(), *head.parameters()]
    before = identity(params)

    def loss(words):
        calls.append(None)
        value = head(table(words)).square().mean()
        if len(calls) == failing:
            raise RuntimeError("stop")
        return value

    with pytest.raises(RuntimeError, match="stop"):
        sam_gradient(loss, params, (torch.tensor([1, 1, 4]),), rho=0.4, m=2)
    assert identity(params) == before


@pytest.mark.parametrize("failing", [1, 2, 4])
@pytest.mark.parametrize("error", ERRORS)
def test_autocast_around_and_inside_the_loss_is_as_before_the_call(failing, error):
    module, calls = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), []
    x, y = (t.float() for t in BATCH)

    def loss(x, y):
        calls.append(None)
        with torch.autocast("cpu", enabled=False):
            if len(calls) == failing:
                raise error("stop")
        return (module(x).float() - y).square().mean()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
        with pytest.raises(error, match="stop"):
            SAM(module, rho=0.4, m=4).backward(loss, x, y)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
        assert torch.equal(module(x), out)
    assert not torch.is_autocast_enabled("cpu")


def test_hooks_of_the_users_are_back_after_a_failure():
    module, fired = network(), []
    weight = module[0].weight
    weight.register_hook(lambda _: fired.append("tensor"))
    weight.register_post_accumulate_grad_hook(lambda _: fired.append("accumulated"))
    sam = SAM(module, rho=0.4)
    for failing in (1, 2):
        calls = []

        def loss(x, y, failing=failing, calls=calls):
            calls.append(None)
            if len(calls) == failing:
                raise KeyboardInterrupt
            return (module(x) - y).square().mean()

        with pytest.raises(KeyboardInterrupt):
            sam.backward(loss, *BATCH)
    assert fired == []
    (module(BATCH[0]) - BATCH[1]).square().mean().backward()
    assert fired == ["tensor", "accumulated"]


def test_hook_that_fails_while_gradients_are_deposited_meets_the_unperturbed_weights():
    session = Session("sam")
    before, seen = identity(session.module), []

    def fail(_):
        seen.append((identity(session.module) == before, weights_are_perturbed()))
        raise RuntimeError("stop")

    session.module[4].weight.register_post_accumulate_grad_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        session.sam.backward(session.loss(), *BATCH)
    assert seen == [(True, False)]
    assert identity(session.module) == before


def test_failure_inside_another_models_call_puts_both_back():
    """A teacher that is itself perturbed in the student's loss."""
    outer, inner = Session("sam"), Session("asam")
    before = outer.everything(), inner.everything()

    def loss(x, y):
        inner.sam.backward(inner.loss(2), x, y)
        return outer.loss()(x, y)

    with pytest.raises(RuntimeError, match="stop"):
        outer.sam.backward(loss, *BATCH)
    for session, state in zip((outer, inner), before, strict=True):
        assert [k for k, v in session.everything().items() if v != state[k]] == []
