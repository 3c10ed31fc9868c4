"""Modules that run in the loss and are not SAM's: docs/faults.md, "The same world"."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as modules

from lowland import SAM, sam_gradient

from ..naive import buffers_of, relative_error, seeded, tensors

pytestmark = pytest.mark.usefixtures("at_once")

B, M = 12, 4


def generator_and_discriminator():
    G = seeded(nn.Linear(3, 5))
    D = seeded(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)), 1)
    return G, D.requires_grad_(False)


GIVEN = {
    "module": lambda G, _: G,
    "parameters": lambda G, _: list(G.parameters()),
    "names": lambda G, _: list(G.named_parameters()),
    "both": lambda G, D: nn.ModuleList([G, D]),
}


@pytest.mark.parametrize("engine", ["loop", "batched", "auto"])
@pytest.mark.parametrize("given", GIVEN)
def test_batch_norm_of_another_module_moves_as_in_plain_passes_over_the_groups(given, engine):
    (z,) = tensors(1, (B, 3))
    G, D = generator_and_discriminator()
    twin, (plain_G, _) = copy.deepcopy(D), (G, None)
    for group in z.split(M):
        twin(plain_G(group))
    sam = SAM(GIVEN[given](G, D), rho=0.5, m=M, engine=engine)
    sam.backward(lambda z: F.softplus(-D(G(z))).mean(), z)
    for a, b in zip(D.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("given", GIVEN)
def test_gradient_is_the_same_however_the_parameters_are_given(given, engine):
    (z,) = tensors(1, (B, 3))
    found = []
    for way in ("parameters", given):
        G, D = generator_and_discriminator()
        sam = SAM(GIVEN[way](G, D), rho=0.5, m=M, engine=engine)
        sam.backward(lambda z, G=G, D=D: D(G(z)).square().mean(), z)
        found.append([p.grad for p in G.parameters()])
    assert relative_error(found[1], found[0]) < 1e-12


@pytest.mark.parametrize("policy", ["first", "frozen"])
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_policy_holds_for_a_module_that_the_loss_reaches_through_an_object(policy, engine):
    G, D = generator_and_discriminator()
    holder = {"deep": [D]}
    (z,) = tensors(1, (B, 3))

    def loss(z):
        return F.softplus(-holder["deep"][0](G(z))).mean()

    before = buffers_of(D)
    sam_gradient(loss, list(G.parameters()), (z,), rho=0.5, m=M, bn_stats=policy, engine=engine)
    assert int(D[1].num_batches_tracked) == (3 if policy == "first" else 0)
    assert (buffers_of(D) == before) == (policy == "frozen")


class Centred(nn.Module):
    """A criterion whose centre follows what it sees."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(5, dtype=torch.float64))

    def forward(self, h):
        value = (h - self.centre).square().mean()
        with torch.no_grad():
            self.centre.lerp_(h.mean(0), 0.1)
        return value


@pytest.mark.filterwarnings("ignore:the groups were run one after the other")
@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_centre_of_a_criterion_moves_once_a_group(engine):
    G, criterion = generator_and_discriminator()[0], Centred()
    (z,) = tensors(1, (B, 3))
    twin = Centred()
    for group in z.split(M):
        twin(G(group))
    SAM(G, rho=0.5, m=M, engine=engine).backward(lambda z: criterion(G(z)), z)
    torch.testing.assert_close(criterion.centre, twin.centre, rtol=1e-13, atol=1e-13)


def test_threads_train_side_by_side_as_they_would_one_after_the_other():
    (z,) = tensors(1, (B, 3))

    def trained(steps=12):
        G, D = generator_and_discriminator()
        sam = SAM(list(G.parameters()), rho=0.5, m=M, engine="loop")
        for _ in range(steps):
            G.zero_grad()
            sam.backward(lambda z: F.softplus(-D(G(z))).mean(), z)
        return [p.grad for p in G.parameters()], [b.clone() for b in D.buffers()]

    expected, failures, found = trained(), [], []

    def work():
        try:
            found.append(trained())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for gradients, buffers in found:
        assert relative_error(gradients, expected[0]) < 1e-12
        for a, b in zip(buffers, expected[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not modules._global_forward_pre_hooks


# One call at a time on the same parameters


def test_sam_inside_its_own_loss_is_refused_and_leaves_the_weights_alone():
    model, (x, y) = seeded(nn.Linear(6, 4)), (tensors(1, (12, 6))[0], torch.arange(12) % 4)
    sam = SAM(model, rho=0.1, engine="loop")
    before = [p.clone() for p in model.parameters()]
    calls = []

    def loss(x, y):
        calls.append(None)
        if len(calls) == 2:
            sam.backward(lambda a, b: F.cross_entropy(model(a), b), x, y)
        return F.cross_entropy(model(x), y)

    with pytest.raises(RuntimeError, match=r"^a SAM must make one gradient at a time, got a call inside"):
        sam.backward(loss, x, y)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    sam.backward(lambda a, b: F.cross_entropy(model(a), b), x, y)  # nothing is held up afterwards


def test_another_sam_of_the_same_parameters_may_run_inside_the_loss():
    model, (x, y) = seeded(nn.Linear(6, 4)), (tensors(1, (12, 6))[0], torch.arange(12) % 4)
    before = [p.clone() for p in model.parameters()]

    def plain(x, y):
        return F.cross_entropy(model(x), y)

    def loss(x, y):
        sam_gradient(plain, list(model.parameters()), (x, y), rho=0.2)
        return plain(x, y)

    found = sam_gradient(loss, list(model.parameters()), (x, y), rho=0.1).gradients
    expected = sam_gradient(plain, list(model.parameters()), (x, y), rho=0.1).gradients
    assert relative_error(found, expected) < 1e-13
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("same", ["sam", "parameters"])
def test_two_threads_on_the_same_weights_are_refused(same):
    model, (x, y) = seeded(nn.Linear(6, 4)), (tensors(1, (12, 6))[0], torch.arange(12) % 4)
    sam = SAM(model, rho=0.1, engine="loop")
    other = sam if same == "sam" else SAM(model, rho=0.1, engine="loop")
    inside, refused = threading.Event(), threading.Event()
    errors = []

    def loss(x, y):
        inside.set()
        assert refused.wait(20)
        return F.cross_entropy(model(x), y)

    def work():
        sam.backward(loss, x, y)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    try:
        other.backward(lambda x, y: F.cross_entropy(model(x), y), x, y)
    except RuntimeError as error:
        errors.append(str(error))
    refused.set()
    thread.join()
    (message,) = errors
    assert message.startswith("a SAM must" if same == "sam" else "params must be at work in one thread")


def test_modules_of_another_thread_are_none_of_a_calls():
    G, D = generator_and_discriminator()
    stranger = [nn.BatchNorm1d(5).double()]
    (z,) = tensors(1, (B, 3))

    def loss(z):
        thread = threading.Thread(target=lambda: stranger[0](torch.ones(3, 5, dtype=torch.float64)))
        thread.start()
        thread.join()
        return D(G(z)).mean()

    sam_gradient(loss, list(G.parameters()), (z,), rho=0.1, engine="loop")
    assert int(stranger[0].num_batches_tracked) == 2  # both passes made it run, and neither put it back


def test_perturbed_weights_of_one_thread_are_not_those_of_another():
    from lowland.sam import perturbed, weights_are_perturbed

    w, seen = nn.Parameter(torch.ones(2)), []
    with perturbed([w], [torch.ones(2)]):
        thread = threading.Thread(target=lambda: seen.append(weights_are_perturbed()))
        thread.start()
        thread.join()
        assert weights_are_perturbed()
    assert seen == [False]


def test_perturbed_weights_of_one_module_are_not_those_of_another():
    from lowland.sam import perturbed, weights_are_perturbed

    ours, other = nn.Linear(2, 2), nn.Linear(2, 2)
    block = perturbed([ours.bias], [torch.ones(2)])
    block.__enter__()
    assert weights_are_perturbed()
    assert weights_are_perturbed(ours)
    assert not weights_are_perturbed(other)
    del block  # given up: nobody can end it any more
    assert not weights_are_perturbed()
    assert not weights_are_perturbed(ours)
