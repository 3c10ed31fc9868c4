"""One step of training against the same step written down with plain torch."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.deep import TrainConfig, TrainState
from lowland.deep.data import TrainingData, to_float
from lowland.errors import InputError

from .room import (
    CPU,
    Recorder,
    assert_close,
    copied,
    gradient,
    length,
    make_data,
    make_state,
    run_steps,
    same_bits,
    seen_batches,
    set_weights,
    small,
    weights,
)

BN: dict[str, Any] = {"model": "resnet_tiny", "model_width": 2}
BATCHES = seen_batches(10)


def images_data(train: int = 40) -> TrainingData:
    return make_data(train, shape=(3, 32, 32))


def moved(model: nn.Module, by: list[Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    set_weights(other, [p.detach() + e for p, e in zip(model.parameters(), by, strict=True)])
    return other


def scaled(tensors: list[Tensor], factor: float | Tensor) -> list[Tensor]:
    return [factor * t for t in tensors]


def sam_direction(
    model: nn.Module, batch: tuple[Tensor, Tensor], rho: float, m: int, l2: float = 0.0
) -> list[Tensor]:
    """The mean over groups of m of the gradients at the groups' own worst cases."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for start in range(0, len(batch[0]), m):
        images, labels = (t[start : start + m] for t in batch)
        g = gradient(model, images, labels, l2)
        at_worst = gradient(moved(model, scaled(g, rho / length(g))), images, labels, l2)
        total = [t + len(labels) / len(batch[0]) * w for t, w in zip(total, at_worst, strict=True)]
    return total


def step_of(state: TrainState) -> list[Tensor]:
    """What one step subtracts from the weights."""
    before = weights(state)
    state.step()
    return [b - a for a, b in zip(weights(state), before, strict=True)]


def test_an_erm_step_is_one_of_gradient_descent() -> None:
    state = make_state()
    expected = scaled(gradient(state.model, *BATCHES[0]), 0.1)
    assert_close(step_of(state), expected, 1e-5)


def test_momentum_keeps_nine_tenths_of_the_last_step() -> None:
    state = make_state(lr_max=0.05)
    velocity = [torch.zeros_like(p) for p in state.params]
    for batch in BATCHES[:4]:
        velocity = [0.9 * v + g for v, g in zip(velocity, gradient(state.model, *batch), strict=True)]
        assert_close(step_of(state), scaled(velocity, 0.05), 1e-5)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_a_sam_step_climbs_in_each_group_of_m_on_the_whole_objective(m: int, l2: float) -> None:
    state = make_state(sam_rho=0.5, m=m, l2_reg=l2)
    expected = sam_direction(state.model, BATCHES[0], 0.5, m, l2)
    assert (
        length([a - b for a, b in zip(expected, gradient(state.model, *BATCHES[0], l2), strict=True)]) > 0.01
    )
    assert_close(step_of(state), scaled(expected, 0.1), 1e-4)


def test_acc_steps_is_another_word_for_m() -> None:
    by_m, by_acc = make_state(sam_rho=0.5, m=2), make_state(sam_rho=0.5, acc_steps=4)
    run_steps(by_m, 3)
    run_steps(by_acc, 3)
    assert same_bits(copied(by_m.model), copied(by_acc.model))


def test_several_ascent_steps_have_their_size_and_stay_in_the_ball() -> None:
    rho, share = 0.5, 0.7
    state = make_state(sam_rho=rho, sam_iters=2, sam_step_size_mult=share)
    g = gradient(state.model, *BATCHES[0])
    e = scaled(g, share * rho / length(g))
    g = gradient(moved(state.model, e), *BATCHES[0])
    e = [a + b for a, b in zip(e, scaled(g, share * rho / length(g)), strict=True)]
    assert length(e) > rho
    e = scaled(e, rho / length(e))
    expected = gradient(moved(state.model, e), *BATCHES[0])
    assert_close(step_of(state), scaled(expected, 0.1), 1e-4)


@pytest.mark.parametrize("clip", [False, True])
def test_without_normalization_the_climb_is_rho_times_the_gradient_perhaps_clipped(clip: bool) -> None:
    state = make_state(sam_rho=0.5, sam_no_grad_norm=True, sam_clip=clip, l2_reg=2.0)
    g = gradient(state.model, *BATCHES[0], 2.0)
    assert length(g) > 1
    factor = 0.5 * min(1.0, 1 / length(g).item()) if clip else 0.5
    expected = gradient(moved(state.model, scaled(g, factor)), *BATCHES[0], 2.0)
    assert_close(step_of(state), scaled(expected, 0.1), 1e-4)


def test_only_the_step_size_of_sam_is_taken_if_asked_for() -> None:
    state = make_state(sam_rho=0.5, m=4, only_sam_step_size=True)
    plain, sam = gradient(state.model, *BATCHES[0]), sam_direction(state.model, BATCHES[0], 0.5, 4)
    expected = scaled(plain, length(sam) / length(plain))
    assert_close(step_of(state), scaled(expected, 0.1), 1e-4)


def test_max_sum_sam_climbs_on_the_previous_batch_and_first_on_the_current_one() -> None:
    state = make_state(sam_rho=0.5, sam_use_prev_batch=True, optimizer_options=("momentum=0",))
    previous = BATCHES[0]
    for i, batch in enumerate(BATCHES[:7]):  # beyond an epoch of 5
        g = gradient(state.model, *previous)
        expected = gradient(moved(state.model, scaled(g, 0.5 / length(g))), *batch)
        if state.iteration == state.steps_per_epoch:
            state.next_epoch()
        assert_close(step_of(state), scaled(expected, 0.1), 1e-4)
        previous = BATCHES[i]


def test_a_max_sum_row_speaks_of_the_current_batch_not_of_the_previous_one() -> None:
    state = make_state(sam_rho=0.5, sam_use_prev_batch=True)
    state.step()
    state.reset_sums()
    losses = F.cross_entropy(state.model(BATCHES[1][0]), BATCHES[1][1]).item()
    state.step()
    objective, loss, _ = (state.sums / state.seen).tolist()
    assert (objective, loss) == pytest.approx((losses, losses), rel=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "epochs"),
    [
        (0.0, 1.0, [1, 2, 3, 4]),
        (0.5, 1.0, [2, 3, 4]),
        (0.0, 0.5, [1, 2]),
        (0.5, 0.75, [2, 3]),
    ],
)
def test_sam_is_on_while_the_epochs_share_lies_in_its_window(
    start: float, end: float, epochs: list[int]
) -> None:
    state = make_state(epochs=4, sam_rho=0.3, sam_epoch_frac_start=start, sam_epoch_frac_end=end)
    recorder = Recorder(state)
    for epoch in range(1, 5):
        assert state.rho == (0.3 if epoch in epochs else 0.0)
        recorder.calls.clear()
        run_steps(state, 5)
        assert len(recorder.calls) == (10 if epoch in epochs else 5)
        state.next_epoch()


def test_the_radius_may_follow_the_learning_rate() -> None:
    state = make_state(sam_lr_mult=2.0, lr_max=0.3, lr_schedule="cosine")
    recorder = Recorder(state)
    for _ in range(4):
        rate = state.learning_rate
        before = weights(state)
        state.step()
        climb = [a - b for a, b in zip(recorder.calls[-1].params, before, strict=True)]
        assert length(climb).item() == pytest.approx(2 * rate, rel=1e-4)


def test_the_rate_of_a_step_is_that_of_the_share_of_training_after_it() -> None:
    state = make_state(epochs=3, lr_max=0.3, lr_schedule="cosine")
    for step in range(15):
        run_steps(state, 1)
        share = torch.tensor((step + 1) / 15, dtype=torch.float64)
        expected = 0.3 * (1 + torch.cos(torch.pi * share)) / 2
        assert state.optimizer.param_groups[0]["lr"] == pytest.approx(expected.item(), abs=1e-12)


def test_piecewise_drops_at_the_step_that_completes_half_of_the_training() -> None:
    state = make_state(epochs=4, lr_max=1.0, lr_schedule="piecewise")
    rates = []
    for _ in range(20):
        run_steps(state, 1)
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0] * 9 + [0.1] * 5 + [0.01] * 6)


@pytest.mark.parametrize("add", [0.0, 0.2])
@pytest.mark.parametrize("mul", [0.0, 0.5])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_weight_noise_is_there_for_the_gradient_and_gone_for_the_step(
    add: float, mul: float, rho: float
) -> None:
    state = make_state(add_weight_perturb_scale=add, mul_weight_perturb_scale=mul, sam_rho=rho, l2_reg=0.1)
    recorder, before, model = Recorder(state), weights(state), copy.deepcopy(state.model)
    step = step_of(state)
    noisy = recorder.calls[0].params
    assert (add + mul > 0) == (not all(torch.equal(a, b) for a, b in zip(noisy, before, strict=True)))
    set_weights(model, noisy)
    if rho > 0:
        expected = sam_direction(model, BATCHES[0], rho, 8, 0.1)
    else:
        expected = gradient(model, *BATCHES[0], 0.1)
    assert_close(step, scaled(expected, 0.1), 1e-4)


def noise_of(**options: Any) -> tuple[Tensor, Tensor]:
    """The noise of five steps and the weights that it was added to."""
    state = make_state(model_width=64, lr_max=0.0, **options)
    recorder, before = Recorder(state), weights(state)
    run_steps(state, 5)
    noise = [
        torch.cat([(a - b).flatten() for a, b in zip(c.params, before, strict=True)]) for c in recorder.calls
    ]
    assert not torch.equal(noise[0], noise[1])
    return torch.cat(noise), torch.cat([b.flatten() for b in before]).repeat(5)


def test_added_noise_has_the_distribution_that_its_name_says() -> None:
    gauss, _ = noise_of(add_weight_perturb_scale=0.3)
    assert gauss.std().item() == pytest.approx(0.3, rel=0.05)
    assert gauss.mean().abs() < 0.02
    assert (gauss.abs() < 0.3).double().mean().item() == pytest.approx(0.683, abs=0.03)
    uniform, _ = noise_of(add_weight_perturb_scale=0.3, weight_perturb_distr="uniform")
    assert uniform.abs().max().item() == pytest.approx(0.15, rel=0.01)
    assert uniform.std().item() == pytest.approx(0.3 / 12**0.5, rel=0.05)


def test_multiplied_noise_is_in_proportion_to_the_weights() -> None:
    noise, of = noise_of(mul_weight_perturb_scale=0.3)
    ratio = (noise / of)[of.abs() > 1e-3]
    assert ratio.std().item() == pytest.approx(0.3, rel=0.05)
    assert ratio.mean().abs() < 0.02


def test_the_two_kinds_of_weight_noise_are_independent() -> None:
    multiplied, of = noise_of(mul_weight_perturb_scale=1.0)
    both, _ = noise_of(mul_weight_perturb_scale=1.0, add_weight_perturb_scale=1.0)
    large = of.abs() > 1e-3
    pair = torch.stack([(multiplied / of)[large], (both - multiplied)[large]])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.1


def test_gradient_noise_has_its_scale_and_is_added_once_to_the_gradient_of_the_step() -> None:
    state = make_state(
        grad_gauss_std=0.5, model_width=64, sam_rho=0.1, m=2, optimizer_options=("momentum=0",)
    )
    noises = []
    for batch in BATCHES[:3]:
        expected = sam_direction(state.model, batch, 0.1, 2)
        noise = [s / 0.1 - g for s, g in zip(step_of(state), expected, strict=True)]
        noises.append(torch.cat([n.flatten() for n in noise]))
    assert torch.cat(noises).std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.cat(noises).mean().abs() < 0.05
    assert torch.corrcoef(torch.stack(noises))[0, 1].abs() < 0.2


def relabeled(share: float, schedule: str = "constant", epochs: int = 1) -> list[float]:
    """The share of labels of each step that differ from the data's."""
    data = make_data(2000)
    options: dict[str, Any] = {"batch_size": 500, "epochs": epochs, "model": "linear"}
    plain = seen_batches(4 * epochs, data, **options)
    noisy = seen_batches(4 * epochs, data, **options, sgd_p_label_noise=share, ln_schedule=schedule)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, noisy, strict=True))
    return [(a[1] != b[1]).double().mean().item() for a, b in zip(plain, noisy, strict=True)]


def test_each_label_is_drawn_anew_from_all_classes_with_the_probability_given() -> None:
    found = relabeled(0.6)
    assert sum(found) / 4 == pytest.approx(0.6 * 2 / 3, abs=0.03)
    assert len(set(found)) > 1


def test_label_noise_follows_its_schedule() -> None:
    found = relabeled(1.0, "piecewise_3_inf", epochs=2)
    assert found[:3] == pytest.approx([2 / 3] * 3, abs=0.08)
    assert found[3:] == [0.0] * 5  # the fourth of eight steps completes the first half


def test_drawn_labels_are_uniform_and_do_not_touch_the_data() -> None:
    data = make_data(2000)
    data = replace(data, train=replace(data.train, targets=torch.zeros(2000, dtype=torch.int64)))
    batches = seen_batches(4, data, batch_size=500, epochs=1, model="linear", sgd_p_label_noise=1.0)
    counts = torch.bincount(torch.cat([labels for _, labels in batches]), minlength=3)
    assert (counts - 2000 / 3).abs().max() < 90
    assert not data.train.targets.any()


def test_each_epoch_is_a_new_permutation_without_the_incomplete_last_batch() -> None:
    data = make_data(43)
    batches = seen_batches(15, data, epochs=3)
    keys = [image.numpy().tobytes() for image in to_float(data.train.inputs)]
    epochs = []
    for epoch in range(3):
        seen = [keys.index(x.numpy().tobytes()) for b in batches[5 * epoch : 5 * epoch + 5] for x in b[0]]
        labels = torch.cat([b[1] for b in batches[5 * epoch : 5 * epoch + 5]])
        assert len(set(seen)) == 40
        assert torch.equal(labels, data.train.targets[seen])
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])
    assert {*epochs[0], *epochs[1], *epochs[2]} == set(range(43))


def test_pixels_are_between_zero_and_one() -> None:
    images = torch.cat([b[0] for b in BATCHES])
    assert 0 <= images.min() < 0.1
    assert 0.9 < images.max() <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"sam_rho": 0.1},
        {"sam_rho": 0.1, "m": 2},
        {"grad_gauss_std": 0.1},
        {"add_weight_perturb_scale": 0.1},
        {"sgd_p_label_noise": 1e-9},
        {"l2_reg": 0.1},
        {"optimizer": "adamw"},
        {"model": "linear"},
    ],
)
def test_runs_that_differ_in_one_option_see_the_same_examples_in_the_same_order(
    options: dict[str, Any],
) -> None:
    state = make_state(make_data(), **options)
    state.sam.capture, state.sam.engine = "off", "loop"  # so that the loss is called in every step
    found = []
    for _ in range(10):
        if state.iteration == state.steps_per_epoch:
            state.next_epoch()
        recorder = Recorder(state)
        state.step()
        state.objective = recorder.inner
        size = sum(len(c.inputs) for c in recorder.calls) // (2 if "sam_rho" in options else 1)
        assert size == 8
        calls = recorder.calls[::2] if "sam_rho" in options else recorder.calls
        found.append((torch.cat([c.inputs for c in calls]), torch.cat([c.targets for c in calls])))
    for (images, labels), (other, others) in zip(found, BATCHES, strict=True):
        assert torch.equal(images, other)
        assert torch.equal(labels, others)


def test_another_seed_has_another_order_and_other_weights() -> None:
    first, second = make_state(), make_state(seed=1)
    assert not torch.equal(first.params[0], second.params[0])
    assert not torch.equal(seen_batches(1)[0][0], seen_batches(1, seed=1)[0][0])


def test_noise_of_one_kind_does_not_move_noise_of_another() -> None:
    labels = [seen_batches(5, sgd_p_label_noise=0.5, **o) for o in ({}, {"grad_gauss_std": 0.1})]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*labels, strict=True))


def test_images_are_augmented_anew_in_each_epoch_where_the_set_says_so() -> None:
    data = make_data(8, shape=(3, 8, 8))
    options: dict[str, Any] = {"batch_size": 8, "model": "fc", "epochs": 2}
    plain = seen_batches(2, data, dataset="cifar10", no_data_augm=True, **options)
    augmented = seen_batches(2, data, dataset="cifar10", **options)
    assert torch.equal(plain[0][0], seen_batches(1, data, **options)[0][0])
    order = [(plain[0][0] == x).flatten(1).all(1).nonzero().item() for x in plain[1][0]]
    assert not torch.equal(augmented[0][0], plain[0][0])
    assert not torch.equal(augmented[0][0][order], augmented[1][0])
    assert torch.equal(augmented[0][1], plain[0][1])
    linear = seen_batches(2, data, dataset="cifar10", **options | {"model": "linear"})
    assert all(torch.equal(a[0], b[0]) for a, b in zip(linear, plain, strict=True))  # as in the original


def test_dropout_draws_anew_in_each_step_and_alike_in_both_passes() -> None:
    state = make_state(droprate=0.5, sam_rho=1e-4, lr_max=0.0, model_width=64)
    masks: list[Tensor] = []
    dropout = next(m for m in state.model.modules() if isinstance(m, nn.Dropout))
    dropout.register_forward_hook(lambda _m, x, y: masks.append((y != 0) | (x[0] == 0)))
    run_steps(state, 2)
    assert len(masks) == 4
    close = [(a == b).double().mean().item() for a, b in ((masks[0], masks[1]), (masks[2], masks[3]))]
    assert min(close) > 0.99
    assert (masks[0] == masks[2]).double().mean() < 0.95


def test_dropout_does_not_depend_on_the_default_generator() -> None:
    results = []
    for seed in (0, 1):
        state = make_state(droprate=0.5)
        torch.manual_seed(seed)
        run_steps(state, 2)
        results.append(copied(state.model))
    assert same_bits(*results)


def norm_of(state: TrainState) -> nn.BatchNorm2d:
    return next(m for m in state.model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("policy", "count"), [("first", 1), ("both", 2), ("frozen", 0)])
def test_batch_norm_statistics_move_in_the_passes_that_the_policy_names(policy: str, count: int) -> None:
    state = make_state(images_data(), **BN, sam_rho=0.1, bn_stats=policy)
    inputs: list[Tensor] = []
    norm_of(state).register_forward_pre_hook(lambda _m, x: inputs.append(x[0].detach()))
    state.step()
    expected = torch.zeros(norm_of(state).num_features)
    for x in inputs[:count]:
        expected = 0.9 * expected + 0.1 * x.mean((0, 2, 3))
    assert len(inputs) == 2
    torch.testing.assert_close(norm_of(state).running_mean, expected)
    assert norm_of(state).num_batches_tracked == count


def test_frozen_batch_norms_are_in_evaluation_mode_and_the_rest_in_training_mode() -> None:
    state = make_state(images_data(), **BN, freeze_bn_stats=True, droprate=0.5)
    run_steps(state, 2)
    for module in state.model.modules():
        if not list(module.children()):
            assert module.training is not isinstance(module, nn.BatchNorm2d)
    assert not norm_of(state).running_mean.any()
    assert norm_of(state).num_batches_tracked == 0


def test_the_average_is_updated_after_every_step() -> None:
    state = make_state(swa_tau=0.7)
    expected = weights(state)
    for _ in range(3):
        state.step()
        expected = [0.7 * a + 0.3 * w for a, w in zip(expected, weights(state), strict=True)]
    assert_close([p.detach() for p in state.average.model.parameters()], expected)


def test_sums_are_over_the_examples_since_they_were_reset() -> None:
    state = make_state(l2_reg=0.2)
    state.step()
    state.reset_sums()
    total = torch.zeros(3, dtype=torch.float64)
    for images, labels in BATCHES[1:4]:
        outputs = state.model(images).detach()
        loss = F.cross_entropy(outputs, labels, reduction="sum")
        penalty = 0.1 * sum(p.detach().square().sum() for p in state.params)
        wrong = (outputs.argmax(1) != labels).sum()
        total += torch.tensor([(loss + 8 * penalty).item(), loss.item(), wrong.item()])
        state.step()
    torch.testing.assert_close(state.sums, total, rtol=1e-5, atol=0)
    assert (state.seen, state.steps, state.iteration, state.epoch) == (24, 4, 4, 1)


def test_training_goes_on_with_the_rows_that_are_kept() -> None:
    state = make_state()
    rows = torch.tensor([3, 5, 8, *range(20, 37)])
    state.keep(rows)
    assert (len(state.train), state.steps_per_epoch) == (20, 2)
    assert torch.equal(state.train.indices, state.data.train.indices[rows])
    recorder = Recorder(state)
    run_steps(state, 2)
    keys = {x.numpy().tobytes() for x in to_float(state.data.train.inputs[rows])}
    assert {x.numpy().tobytes() for c in recorder.calls for x in c.inputs} <= keys


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_half_precision_step_is_a_full_one_but_for_rounding(kind: str) -> None:
    options: dict[str, Any] = {"sam_rho": 0.1, "m": 4, "l2_reg": 0.01}
    full, half = make_state(**options), make_state(**options, half_prec=kind)
    expected, found = step_of(full), step_of(half)
    difference = length([a - b for a, b in zip(found, expected, strict=True)])
    assert 0 < difference < 0.03 * length(expected)
    assert all(p.dtype == torch.float32 for p in half.params)


def test_a_step_whose_half_precision_gradient_overflows_is_skipped_and_the_scale_halved() -> None:
    state = make_state(half_prec="fp16")
    with torch.no_grad():
        state.params[0].mul_(1e6)
    before, scale = weights(state), state.scaler.get_scale()
    state.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(state), before, strict=True))
    assert state.scaler.get_scale() == scale / 2


def test_more_examples_in_a_batch_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"^batch_size must be at most the number .*, 40, got 41\.$"):
        make_state(batch_size=41)


@pytest.mark.parametrize("classes", [3, 2])
def test_the_offset_loss_is_for_two_classes_only(classes: int) -> None:
    options: dict[str, Any] = {"loss": "ce_offset", "loss_offset": 1.0}
    if classes == 2:
        run_steps(make_state(make_data(classes=2), **options), 1)
    else:
        with pytest.raises(InputError, match="two classes"):
            make_state(make_data(classes=3), **options)


def test_a_removal_that_would_leave_no_batch_is_refused_before_training_begins() -> None:
    with pytest.raises(InputError, match=r"n_rm_pts|batch_size"):
        make_state(n_rm_pts=0.95, epoch_rm_noise=0.5)


def test_the_callers_data_stay_as_they_are() -> None:
    data = make_data()
    before = data.train.inputs.clone(), data.train.targets.clone()
    state = TrainState(small(sgd_p_label_noise=0.5), data, CPU)
    run_steps(state, 5)
    assert torch.equal(data.train.inputs, before[0])
    assert torch.equal(data.train.targets, before[1])
    assert isinstance(state.config, TrainConfig)
