"""Which parameters a call trains: those that the module has then; and where none can be trained."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import SAM, sam_gradient

from .naive import mlp, regression, relative_error, seeded, squared, tensors

Y = torch.arange(7) % 3


def expected_of(module, x):
    params = list(module.parameters())
    return sam_gradient(lambda x: F.cross_entropy(module(x), Y), params, (x,), rho=0.1).gradients


@pytest.mark.parametrize("change", ["head", "assigned", "thawed", "added"])
def test_parameters_of_a_module_are_looked_up_in_each_call(change):
    x = regression()[0]
    module = seeded(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    if change == "thawed":
        module[0].requires_grad_(False)
    sam = SAM(module, rho=0.1)
    sam.backward(lambda x: F.cross_entropy(module(x), Y), x)
    if change == "head":
        module[1] = seeded(nn.Linear(6, 4), 3)
    elif change == "assigned":
        module.load_state_dict({k: 2.0 * v for k, v in module.state_dict().items()}, assign=True)
    elif change == "thawed":
        module[0].requires_grad_(True)
    else:
        module.append(seeded(nn.Linear(3, 3), 4))
    module.zero_grad()
    expected = expected_of(module, x)
    sam.backward(lambda x: F.cross_entropy(module(x), Y), x)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-13
    assert [id(p) for p in sam.params] == [id(p) for p in module.parameters()]


def test_patterns_of_names_are_matched_again_when_parameters_change():
    x = regression()[0]
    module = seeded(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    sam = SAM(module, rho=0.1, perturb="1.*", diagnostics=True)
    module[1] = seeded(nn.Linear(6, 3), 3)
    sam.backward(lambda x: F.cross_entropy(module(x), Y), x)
    expected = sam_gradient(
        lambda x: F.cross_entropy(module(x), Y), list(module.parameters()), (x,), rho=[0.0, 0.0, 0.1, 0.1]
    ).gradients
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-13


def test_leaves_that_sam_does_not_hold_are_named_once():
    module, (proxies,) = seeded(nn.Linear(4, 5)), (nn.Parameter(t) for t in tensors(3, (3, 5)))
    criterion = seeded(nn.PReLU())
    sam, x = SAM(module, rho=0.1), regression()[0]

    def loss(x):
        return F.cross_entropy(criterion(module(x)) @ proxies.T, Y)

    with pytest.warns(UserWarning, match=r"get none: .*(shape \(3, 5\)|weight of PReLU)") as heard:
        sam.backward(loss, x)
    assert len(heard) == 1
    assert all(name in str(heard[0].message) for name in ("one of shape (3, 5)", "weight of PReLU"))
    sam.backward(loss, x)  # a second warning would be an error


def test_leaf_that_every_engine_finds_is_named_by_the_batched_one_too():
    module, (scale,) = mlp(), (nn.Parameter(t) for t in tensors(3, (3,)))
    with pytest.warns(UserWarning, match=r"one of shape \(3,\)"):
        sam_gradient(
            lambda x, y: squared(module, x, y * scale),
            list(module.parameters()),
            regression(),
            rho=0.1,
            m=1,
            engine="batched",
        )


def test_loss_of_all_its_parameters_says_nothing():
    module = mlp()
    module[0].requires_grad_(False)
    SAM(module, rho=0.1).backward(lambda x, y: squared(module, x, y), *regression())


# Where there is nothing to train


@pytest.mark.parametrize("engine", ["loop", "auto", "batched"])
def test_model_that_was_rebuilt_is_not_the_one_that_sam_holds(engine):
    old, new = mlp(), mlp()
    sam = SAM(list(old.parameters()), rho=0.1, m=2, engine=engine)
    with pytest.raises(ValueError, match=r"^loss must depend on the params, got a gradient for none of them"):
        sam.backward(lambda x, y: squared(new, x, y), *regression())
    assert all(p.grad is None for p in (*old.parameters(), *new.parameters()))


def test_lazy_module_is_refused_until_it_has_seen_a_batch():
    module, (x, y) = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3)), regression()
    sam = SAM(module, rho=0.1)
    with pytest.raises(ValueError, match=r"^params must be initialized, got one of a lazy module"):
        sam.backward(lambda x, y: squared(module, x, y), x.float(), y.float())
    module(x.float())
    sam.backward(lambda x, y: squared(module, x, y), x.float(), y.float())
    assert module[2].weight.grad.shape == (3, 6)


def test_inference_mode_is_refused_in_one_sentence():
    module = mlp()
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"must be called outside torch\.inference_mode"),
    ):
        SAM(module, rho=0.1).backward(lambda x, y: squared(module, x, y), *regression())


def test_batch_made_in_inference_mode_is_a_batch():
    module = mlp()
    with torch.inference_mode():
        x, y = regression()
    for m in (None, 2):
        for engine in ("loop", "batched"):
            found = sam_gradient(
                lambda x, y: squared(module, x.clone(), y.clone()),
                list(module.parameters()),
                (x, y),
                rho=0.1,
                m=m,
                engine=engine,
            ).gradients
            plain = sam_gradient(
                lambda x, y: squared(module, x, y), list(module.parameters()), regression(), rho=0.1, m=m
            ).gradients
            assert relative_error(found, plain) < 1e-12


@pytest.mark.parametrize("engine", ["loop", "auto", "batched"])
@pytest.mark.parametrize("options", [{}, {"m": 2}, {"m": 2, "diagnostics": True}, {"steps": 2}], ids=str)
def test_default_device_is_nobodys_business(options, engine):
    module, twin = mlp(), mlp()
    SAM(twin, rho=0.1, engine="loop", **options).backward(lambda x, y: squared(twin, x, y), *regression())
    batch = regression()
    torch.set_default_device("meta")
    try:
        SAM(module, rho=0.1, engine=engine, **options).backward(lambda x, y: squared(module, x, y), *batch)
    finally:
        torch.set_default_device(None)
    assert relative_error([p.grad for p in module.parameters()], [p.grad for p in twin.parameters()]) < 1e-12


@pytest.mark.parametrize("m", [None, 2])
@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"diagnostics": True}], ids=str)
def test_parameters_without_memory_that_the_loss_does_not_use_are_left_out(m, options):
    module, twin = mlp(), mlp()
    module.register_parameter("unused", nn.Parameter(torch.empty(5, device="meta")))
    SAM(module, rho=0.1, m=m, **options).backward(lambda x, y: squared(module, x, y), *regression())
    SAM(twin, rho=0.1, m=m, **options).backward(lambda x, y: squared(twin, x, y), *regression())
    found = [p.grad for name, p in module.named_parameters() if name != "unused"]
    assert relative_error(found, [p.grad for p in twin.parameters()]) < 1e-12
    assert module.unused.grad is None
