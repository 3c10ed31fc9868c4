"""The climb along the gradient as the optimizer scales it, against the formula."""

import pytest
import torch

from lowland import SAM, presets, sam_gradient
from lowland.sam import L2, Preconditioned

from .naive import added, mlp, norm, regression, relative_error, squared, value_and_gradient

OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), "exp_avg_sq"),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True), "exp_avg_sq"),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.01), "square_avg"),
}


def trained(make, steps=3):
    """A network and its optimizer after some plain steps."""
    module = mlp()
    optimizer = make(module.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        squared(module, *regression(step)).backward()
        optimizer.step()
    optimizer.zero_grad()
    return module, optimizer


def by_the_formula(module, second, batch, *, rho, eps):
    """The gradient at w + e."""
    w = [p.detach().clone() for p in module.parameters()]
    _, g = value_and_gradient(module, squared, batch, w)
    scaled = [a / (v.sqrt() + eps) for a, v in zip(g, second, strict=True)]
    length = torch.cat([a.flatten() for a in scaled]).norm()
    return value_and_gradient(module, squared, batch, added(w, scaled, rho / length))[1]


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("m", [1, 2, None])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gradient_is_that_of_the_formula_over_all_tensors(kind, m, engine) -> None:
    make, name = OPTIMIZERS[kind]
    module, optimizer = trained(make)
    x, y = regression(9, examples=6)
    second = [optimizer.state[p][name].clone() for p in module.parameters()]
    size = len(x) if m is None else m
    wanted = [torch.zeros_like(p) for p in module.parameters()]
    for start in range(0, len(x), size):
        group = x[start : start + size], y[start : start + size]
        for total, g in zip(wanted, by_the_formula(module, second, group, rho=0.5, eps=1e-3), strict=True):
            total += g * size / len(x)
    sam = presets.preconditioned_sam(module, optimizer=optimizer, rho=0.5, eps=1e-3, m=m, engine=engine)
    sam.backward(lambda x, y: squared(module, x, y), x, y)
    assert relative_error([p.grad for p in module.parameters()], wanted) <= 1e-10


def test_perturbation_has_the_radius_over_several_steps_too() -> None:
    module, optimizer = trained(OPTIMIZERS["adam"][0])
    params = dict(module.named_parameters())
    for steps in (1, 3):
        found = sam_gradient(
            lambda x, y: squared(module, x, y),
            params,
            regression(),
            rho=0.3,
            steps=steps,
            ascent=Preconditioned(optimizer),
            diagnostics=True,
        ).diagnostics
        torch.testing.assert_close(found.perturbation_norm, torch.full_like(found.perturbation_norm, 0.3))


def test_before_the_first_step_it_is_sam() -> None:
    module = mlp()
    optimizer = torch.optim.Adam(module.parameters())
    (one, two) = (
        sam_gradient(
            lambda x, y: squared(module, x, y),
            list(module.parameters()),
            regression(),
            rho=0.3,
            ascent=ascent,
        ).gradients
        for ascent in (L2(), Preconditioned(optimizer))
    )
    assert relative_error(two, one) == 0.0


def test_scale_of_the_second_moment_does_not_matter_and_its_shape_does() -> None:
    module, optimizer = trained(OPTIMIZERS["adam"][0])
    found = []
    for change in (lambda v: v, lambda v: 1e4 * v, lambda v: v.flip(0)):
        for p in module.parameters():
            optimizer.state[p]["exp_avg_sq"] = change(optimizer.state[p]["exp_avg_sq"])
        ascent = Preconditioned(optimizer, eps=1e-30)
        found.append(
            sam_gradient(
                lambda x, y: squared(module, x, y),
                list(module.parameters()),
                regression(),
                rho=0.3,
                ascent=ascent,
            ).gradients
        )
    assert relative_error(found[1], found[0]) <= 1e-12
    assert relative_error(found[2], found[0]) > 1e-3


def test_weights_that_were_never_moved_by_the_optimizer_take_no_part_in_an_overflow() -> None:
    module, optimizer = trained(OPTIMIZERS["adam"][0])
    for p in module.parameters():
        optimizer.state[p]["exp_avg_sq"].zero_()  # P is 1 / eps everywhere
    found = sam_gradient(
        lambda x, y: squared(module, x, y),
        list(module.parameters()),
        regression(),
        rho=0.3,
        ascent=Preconditioned(optimizer, eps=1e-30),
        diagnostics=True,
    )
    assert norm(found.gradients) > 0.0
    assert found.diagnostics.perturbation_norm.item() == pytest.approx(0.3)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_an_optimizer_of_other_weights_or_without_a_second_moment_is_refused(engine) -> None:
    module, optimizer = trained(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    before = [p.detach().clone() for p in module.parameters()]
    for other, said in (
        (optimizer, r"must keep exp_avg_sq or square_avg, got state with \['momentum_buffer'\]"),
        (torch.optim.Adam(mlp(1).parameters()), "must train every weight that is to move"),
    ):
        sam = SAM(module, rho=0.3, m=2, ascent=Preconditioned(other), engine=engine)
        with pytest.raises(ValueError, match=said):
            sam.backward(lambda x, y: squared(module, x, y), *regression())
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_eps_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"eps must be positive, got 0\.0\."):
        Preconditioned(torch.optim.Adam(mlp().parameters()), eps=0.0)
