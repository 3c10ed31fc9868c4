"""Each group by itself: what one group's examples are decides nothing for the others."""

import pytest
import torch

from lowland import sam_gradient

from ..naive import bn_conv, mlp, naive_sam, relative_error, squared, tensors
from .models import MODELS, trained

COLUMNS = ["loss", "gradient_norm", "perturbed_loss", "perturbation_norm", "realised_norm", "cosine"]

SEVERAL = ["mlp", "linear_of_long_sequences", "linear_of_the_groups_mean", "conv2d_of_narrow_maps"]
SEVERAL += ["conv2d_of_wide_maps", "conv2d_depthwise", "transposed_convolutions_of_images", "layer_norm"]
SEVERAL += ["batch_norm", "batch_norm_without_statistics", "instance_norm", "group_norm", "embedding"]
SEVERAL += ["embedding_bag_of_maxima_with_padding", "embedding_tied_to_a_transpose", "class_token"]
SEVERAL += ["relative_position_bias", "attention_with_padded_keys", "attention_with_a_mask_per_head"]
SEVERAL += ["sequence_first_attention", "encoder_layer", "two_views_of_the_data"]


def batched(model, batch, **options):
    module, loss, _ = model
    return sam_gradient(
        loss, trained(module), batch, module=module, engine="batched", max_memory=2**40, **options
    )


def with_rows(batch, rows):
    """The examples ``rows``, in that order."""
    return tuple(t[torch.tensor(rows)] for t in batch)


@pytest.mark.parametrize("options", [{}, {"steps": 2, "l2": 0.1}], ids=["once", "twice with a penalty"])
@pytest.mark.parametrize("name", SEVERAL)
def test_examples_of_one_group_leave_every_other_groups_climb_alone(name, options):
    options = {"rho": 0.3, "m": 2, "diagnostics": True, **options}
    *_, batch = MODELS[name]()
    before = batched(MODELS[name](), with_rows(batch, [0, 1, 2, 3, 4, 5]), **options).diagnostics
    after = batched(MODELS[name](), with_rows(batch, [0, 1, 6, 6, 4, 5]), **options).diagnostics
    for column in COLUMNS:
        a, b = getattr(before, column), getattr(after, column)
        torch.testing.assert_close(a[[0, 2]], b[[0, 2]], rtol=1e-9, atol=1e-12)
    assert (before.gradient_norm[1] - after.gradient_norm[1]).abs() > 1e-4
    assert (before.perturbed_loss[1] - after.perturbed_loss[1]).abs() > 1e-4


@pytest.mark.parametrize("name", SEVERAL)
def test_groups_in_another_order_climb_as_before(name):
    *_, batch = MODELS[name]()
    options = {"rho": 0.3, "m": 2}
    first = batched(MODELS[name](), with_rows(batch, [0, 1, 2, 3, 4, 5]), **options)
    other = batched(MODELS[name](), with_rows(batch, [4, 5, 0, 1, 2, 3]), **options)
    assert relative_error(other.gradients, first.gradients) < 1e-11


@pytest.mark.parametrize("name", SEVERAL)
def test_gradient_is_the_mean_over_groups_that_are_run_alone(name):
    *_, batch = MODELS[name]()
    together = batched(MODELS[name](), with_rows(batch, range(6)), rho=0.3, m=2, l2=0.1)
    alone = [
        batched(MODELS[name](), with_rows(batch, [i, i + 1]), rho=0.3, l2=0.1).gradients for i in (0, 2, 4)
    ]
    mean = [sum(gradients) / 3 for gradients in zip(*alone, strict=True)]
    assert relative_error(together.gradients, mean) < 1e-11


@pytest.mark.parametrize("name", SEVERAL)
def test_groups_with_the_same_examples_have_the_gradient_of_one(name):
    *_, batch = MODELS[name]()
    one = batched(MODELS[name](), with_rows(batch, [0, 1]), rho=0.3, l2=0.1)
    three = batched(MODELS[name](), with_rows(batch, [0, 1, 0, 1, 0, 1]), rho=0.3, l2=0.1, m=2)
    assert relative_error(three.gradients, one.gradients) < 1e-11
    torch.testing.assert_close(three.loss, one.loss)


@pytest.mark.parametrize("make", [mlp, bn_conv])
@pytest.mark.parametrize("m", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_is_that_of_the_naive_loop(make, m, steps):
    module = make()
    shapes = [(7, 4), (7, 3)] if make is mlp else [(7, 2, 5, 5), (7, 2, 2, 2)]
    batch = tuple(tensors(2, *shapes))
    options = {"rho": 0.3, "m": m, "steps": steps, "step_size": 0.7, "l2": 0.1}
    expected = naive_sam(module, squared, batch, **options)

    def loss(*group):
        return squared(module, *group)

    found = batched((module, loss, None), batch, diagnostics=True, **options)
    assert relative_error(found.gradients, expected.gradients) < 1e-12
    assert found.diagnostics.gradient_norm.tolist() == pytest.approx(expected.gradient_norms, rel=1e-12)
    assert found.diagnostics.perturbed_loss.tolist() == pytest.approx(expected.perturbed_losses, rel=1e-12)
    assert found.loss.item() == pytest.approx(expected.loss, rel=1e-12)
