"""What is trained, against explicit computations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.deep.objective import Objective

from .room import mean_loss, small

F64 = torch.float64


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, outputs)).to(F64)


def batch(classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 2, 2, 2, dtype=F64, generator=generator)
    return images, torch.randint(classes, (6,), generator=generator)


def difference(function: Any, at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function of ``at``, which is moved and put back."""
    flat, found = at.detach().view(-1), torch.zeros_like(at).view(-1)
    for i in range(len(flat)):
        original = flat[i].item()
        flat[i] = original + step
        above = function().item()
        flat[i] = original - step
        below = function().item()
        flat[i] = original
        found[i] = (above - below) / (2 * step)
    return found.view_as(at)


def squared_weight_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(
        [difference(lambda: mean_loss(model, images, labels), p).square().sum() for p in model.parameters()]
    ).sum()


def test_without_regularizers_it_is_the_mean_loss() -> None:
    model, (images, labels) = network(), batch()
    value, _ = Objective(small(), model)(images, labels)
    torch.testing.assert_close(value, mean_loss(model, images, labels))


def test_aux_holds_each_examples_cross_entropy_and_error_whatever_is_trained() -> None:
    model, (images, labels) = network(), batch()
    config = small(loss="gce", l1_reg=1.0, jac_reg_lambda=1.0)
    _, aux = Objective(config, model)(images, labels)
    outputs = model(images).detach()
    assert aux.keys() == {"loss", "error"}
    torch.testing.assert_close(aux["loss"], F.cross_entropy(outputs, labels, reduction="none"))
    assert torch.equal(aux["error"], outputs.argmax(1) != labels)
    assert not any(t.requires_grad for t in aux.values())


def test_with_one_output_an_example_is_wrong_where_its_sign_is() -> None:
    model, (images, labels) = network(1), batch(2)
    _, aux = Objective(small(), model)(images, labels)
    assert torch.equal(aux["error"], (model(images)[:, 0] > 0).long() != labels)
    assert 0 < aux["error"].sum() < len(labels)


def test_the_l1_term_sums_the_absolute_values_of_all_parameters() -> None:
    model, (images, labels) = network(), batch()
    value, _ = Objective(small(l1_reg=0.3), model)(images, labels)
    norm = sum(p.abs().sum() for p in model.parameters())
    torch.testing.assert_close(value, mean_loss(model, images, labels) + 0.3 * norm)


def test_the_l2_term_is_left_to_the_sam_gradient() -> None:
    model, (images, labels) = network(), batch()
    value, _ = Objective(small(l2_reg=0.5), model)(images, labels)
    torch.testing.assert_close(value, mean_loss(model, images, labels))


def test_the_weight_gradient_term_is_the_squared_length_over_all_parameters() -> None:
    model, (images, labels) = network(), batch()
    value, _ = Objective(small(weight_grad_reg_lambda=0.7), model)(images, labels)
    term = 0.7 * squared_weight_gradient(model, images, labels)
    torch.testing.assert_close(value, mean_loss(model, images, labels) + term, rtol=1e-7, atol=0)


def test_the_weight_gradient_term_knows_only_the_loss() -> None:
    model, (images, labels) = network(), batch()
    value, _ = Objective(small(weight_grad_reg_lambda=0.7, l1_reg=0.2), model)(images, labels)
    alone, _ = Objective(small(weight_grad_reg_lambda=0.7), model)(images, labels)
    norm = sum(p.abs().sum() for p in model.parameters())
    torch.testing.assert_close(value, alone + 0.2 * norm)


def test_the_input_gradient_term_is_the_squared_length_over_all_pixels() -> None:
    model, (images, labels) = network(), batch()
    value, _ = Objective(small(input_grad_reg_lambda=2.0), model)(images, labels)
    slope = difference(lambda: mean_loss(model, images, labels), images)
    torch.testing.assert_close(
        value, mean_loss(model, images, labels) + 2.0 * slope.square().sum(), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_the_jacobian_term_sums_over_the_classes_mean_logits(classes: int) -> None:
    columns = 1 if classes == 2 else classes
    model, (images, labels) = network(columns), batch(classes)
    value, _ = Objective(small(jac_reg_lambda=3.0), model)(images, labels)
    plain, _ = Objective(small(), model)(images, labels)
    slopes = [difference(lambda c=c: model(images)[:, c].mean(), images) for c in range(columns)]
    term = 3.0 * sum(slope.square().sum() for slope in slopes)
    torch.testing.assert_close(value, plain + term, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_grad_reg_lambda": 0.7},
        {"input_grad_reg_lambda": 2.0},
        {"jac_reg_lambda": 3.0},
        {
            "l1_reg": 0.1,
            "weight_grad_reg_lambda": 0.7,
            "input_grad_reg_lambda": 2.0,
            "jac_reg_lambda": 3.0,
            "loss": "gce",
        },
    ],
)
def test_the_gradient_of_the_total_agrees_with_finite_differences(options: dict[str, Any]) -> None:
    model, (images, labels) = network(), batch()
    objective = Objective(small(**options), model)
    params = list(model.parameters())
    gradients = torch.autograd.grad(objective(images, labels)[0], params)
    for p, g in zip(params, gradients, strict=True):
        expected = difference(lambda: objective(images, labels)[0].detach(), p)
        torch.testing.assert_close(g, expected, rtol=1e-5, atol=1e-7)


def test_the_callers_images_are_left_without_a_gradient() -> None:
    model, (images, labels) = network(), batch()
    Objective(small(input_grad_reg_lambda=1.0), model)(images, labels)[0].backward()
    assert not images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize(("name", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_that_of_the_forward_pass_only(name: str, kind: torch.dtype) -> None:
    model, (images, labels) = network().float(), batch()
    types: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, _i, output: types.append(output.dtype))
    value, aux = Objective(small(half_prec=name), model)(images.float(), labels)
    assert types == [kind, kind]
    assert value.dtype == aux["loss"].dtype == torch.float32
    value.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_without_half_precision_nothing_is_cast() -> None:
    model, (images, labels) = network().float(), batch()
    types: list[torch.dtype] = []
    model[1].register_forward_hook(lambda _m, _i, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):  # even where the caller would
        Objective(small(), model)(images.float(), labels)
    assert types == [torch.float32]
