"""Measures against explicit computations; measuring changes nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.deep import TrainConfig
from lowland.deep.data import Split, to_float
from lowland.deep.evaluation import evaluate, one_step_sharpness, ranking, robust_error
from lowland.deep.measuring import measure

from .room import copied, gradient, length, make_data, make_split, make_state, run_steps, same_bits, small


class Decides(nn.Module):
    """Puts each image into the class that its first pixel names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * F.one_hot((x[:, 0, 0, 0] * 255).round().long(), 4).to(x.dtype)


def decided(predicted: list[int], labels: list[int], clean: list[int]) -> Split:
    images = torch.tensor(predicted, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels), torch.tensor(clean), torch.arange(len(labels)))


SPLIT = decided(
    # kept: one wrong of four; flipped: two follow the true label, one the given, one neither
    predicted=[0, 1, 2, 0, 1, 1, 3, 2],
    labels=[0, 1, 2, 3, 2, 2, 3, 0],
    clean=[0, 1, 2, 3, 1, 1, 0, 1],
)


def fc(seed: int = 0, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, outputs))


def test_errors_are_counted_by_given_true_kept_and_flipped_labels() -> None:
    row = evaluate(small(batch_size_eval=3), Decides(), SPLIT, prefix="train", limit=100)
    right, wrong = F.cross_entropy(torch.tensor([[10.0, 0, 0, 0]]), torch.tensor([0])).item(), 10.0
    assert row["train_error"] == 4 / 8
    assert row["train_error_true"] == 3 / 8
    assert row["train_error_clean"] == 1 / 4
    assert row["train_error_noisy"] == 3 / 4
    assert row["train_loss"] == pytest.approx((4 * right + 4 * (wrong + right)) / 8)
    assert len(row) == 5


def test_only_the_first_examples_are_counted() -> None:
    row = evaluate(small(), Decides(), SPLIT, prefix="test", limit=3)
    assert row["test_error"] == 0.0
    assert row.keys() == {"test_loss", "test_error"}
    assert evaluate(small(), Decides(), SPLIT, prefix="test", limit=5)["test_error"] == 2 / 5


def test_where_all_labels_are_flipped_there_is_no_error_on_the_kept_ones() -> None:
    row = evaluate(small(), Decides(), SPLIT.select(torch.arange(4, 8)), prefix="train", limit=100)
    assert row["train_error_noisy"] == row["train_error"] == 3 / 4
    assert "train_error_clean" not in row


def test_an_empty_split_has_no_measures() -> None:
    empty = SPLIT.head(0)
    assert evaluate(small(), Decides(), empty, prefix="test", limit=10) == {}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_the_size_of_an_evaluation_batch_changes_no_measure(size: int) -> None:
    split = make_split(17)
    reference = evaluate(small(), fc(), split, prefix="x", limit=100)
    found = evaluate(small(batch_size_eval=size), fc(), split, prefix="x", limit=100)
    assert found == pytest.approx(reference, rel=1e-6)


def test_evaluation_is_in_evaluation_mode_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(16, 3), nn.BatchNorm1d(3))
    model[1].eval()
    before, modes = copied(model), [m.training for m in model.modules()]
    config, split = small(attack="pgd", eps=8.0, attack_iters=2), make_split(20)
    results = [
        (
            evaluate(config, model, split, prefix="x", limit=20),
            robust_error(config, model, split, limit=20),
            one_step_sharpness(config, model, split, rho=0.1),
            ranking(config, model, split).tolist(),
        )
        for _ in range(2)
    ]
    assert results[0] == results[1]
    assert same_bits(copied(model), before)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_the_robust_error_of_a_linear_model_is_that_of_its_closed_form_worst_case() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    split = make_split(60, classes=2)
    inner = replace(split, inputs=(split.inputs // 2) + 60)  # no pixel can be clipped
    eps, images = 30.0, to_float(inner.inputs)
    margin = (2 * inner.targets - 1) * model(images)[:, 0]
    wrong = margin - eps / 255 * model[1].weight.abs().sum() <= 0
    config = small(attack="pgd", eps=eps, attack_iters=20, batch_size_eval=7)
    found = robust_error(config, model, inner, limit=50)
    assert found == pytest.approx(wrong[:50].double().mean().item())
    assert found > (margin[:50] <= 0).double().mean().item()


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("count", [40, 200, 300])
def test_sharpness_is_the_mean_rise_of_groups_of_128_among_the_first_256(count: int, l2: float) -> None:
    model, split = fc().double(), make_split(count)
    images, labels = to_float(split.inputs).double(), split.targets
    rho, rises = 0.05, []

    def objective(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = l2 / 2 * sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(x), y) + penalty

    for start in range(0, min(count, 256), 128):
        rows = slice(start, min(start + 128, 256))
        x, y = images[rows], labels[rows]
        g = gradient(model, x, y, l2)
        before = objective(x, y).item()
        with torch.no_grad():
            for p, direction in zip(model.parameters(), g, strict=True):
                p.add_(direction, alpha=rho / length(g).item())
            after = objective(x, y).item()
            for p, direction in zip(model.parameters(), g, strict=True):
                p.sub_(direction, alpha=rho / length(g).item())
        rises.append((after - before, len(y)))
    expected = sum(rise * n for rise, n in rises) / sum(n for _, n in rises)
    found = one_step_sharpness(small(l2_reg=l2), model.float(), split, rho=rho)
    assert found == pytest.approx(expected, rel=2e-4)
    assert found > 0


def test_points_are_ranked_by_their_loss_or_by_the_entropy_of_the_prediction() -> None:
    model, split = fc(), make_split(20)
    outputs = model(to_float(split.inputs)).detach()
    p = outputs.softmax(1)
    torch.testing.assert_close(
        ranking(small(), model, split), F.cross_entropy(outputs, split.targets, reduction="none")
    )
    by_entropy = small(rm_criterion="entropy", n_rm_pts=0.1, epoch_rm_noise=0.5)
    torch.testing.assert_close(ranking(by_entropy, model, split), -(p * p.log()).sum(1))


def test_the_entropy_of_a_binary_prediction_is_that_of_its_two_classes() -> None:
    model, split = fc(outputs=1), make_split(20, classes=2)
    p = model(to_float(split.inputs)).detach().sigmoid()[:, 0]
    by_entropy = small(rm_criterion="entropy", n_rm_pts=0.1, epoch_rm_noise=0.5)
    expected = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(ranking(by_entropy, model, split), expected)


def test_a_row_has_the_running_means_of_the_steps_since_the_last_row() -> None:
    state = make_state(l1_reg=0.01, sam_rho=0.1, lr_schedule="cosine")
    assert not {"running_loss", "lr", "rho"} & measure(state, full=False).keys()
    objectives, losses, errors = [], [], []
    for _ in range(3):
        model = state.model
        images, labels = state._next_batch()
        outputs = model(images).detach()
        objectives.append(F.cross_entropy(outputs, labels) + 0.01 * sum(p.abs().sum() for p in state.params))
        losses.append(F.cross_entropy(outputs, labels))
        errors.append((outputs.argmax(1) != labels).double().mean())
        rate = state.learning_rate
        state.step()
    row = measure(state, full=False)
    assert row["train_objective"] == pytest.approx(sum(objectives).item() / 3, rel=1e-5)
    assert row["running_loss"] == pytest.approx(sum(losses).item() / 3, rel=1e-5)
    assert row["running_error"] == pytest.approx(sum(errors).item() / 3)
    assert (row["lr"], row["rho"]) == (rate, 0.1)
    assert (row["epoch"], row["step"]) == (3 / 5, 3)


def rows_of(config: dict[str, Any], *, full: bool, data: Any = None) -> dict[str, Any]:
    return measure(make_state(data, **config), full=full)


def test_a_full_row_sees_more_examples_than_a_cheap_one() -> None:
    state = make_state(n_final_eval=20, n_eval_every_k_iter=7)
    for full, limit in ((True, 20), (False, 7)):
        row = measure(state, full=full)
        assert row["full"] is full
        for name, split in (("train", state.train), ("test", state.data.test)):
            expected = evaluate(state.config, state.model, split, prefix=name, limit=limit)
            assert expected.items() <= row.items()


def test_sharpness_at_the_training_radius_and_the_robust_error_are_there_if_asked_for() -> None:
    plain = rows_of({}, full=False)
    assert "sharpness_small" in plain
    assert not {"sharpness_rho", "test_error_robust"} & plain.keys()
    more = rows_of({"sam_rho": 0.3, "attack": "pgd", "eps": 4.0}, full=False)
    assert more["sharpness_rho"] > more["sharpness_small"]
    assert 0 <= more["test_error_robust"] <= 1


def test_the_best_weights_are_those_with_the_lowest_validation_error_and_the_first_of_equals() -> None:
    state = make_state()
    errors = {"first": 0.5, "worse": 0.7, "better": 0.2, "equal": 0.2}
    kept = {}
    for name, error in errors.items():
        with torch.no_grad():
            state.params[0].add_(1)
        kept[name] = copied(state.model)
        state.remember_best("best", error, state.model)
        best = {"worse": "first", "equal": "better"}.get(name, name)
        assert same_bits(state.best["best"][1], kept[best])
        assert state.best["best"][0] == errors[best]


def test_the_test_set_chooses_nothing() -> None:
    data = make_data()
    state = make_state(data)
    measure(state, full=True)
    first = copied(state.model)
    run_steps(state, 10)
    # a network that is perfect on the test examples and wrong on all validation examples
    outputs = state.model(to_float(data.test.inputs)).argmax(1)
    guesses = state.model(to_float(data.validation.inputs)).argmax(1)
    state.data = replace(
        state.data,
        test=replace(data.test, targets=outputs, clean_targets=outputs),
        validation=replace(data.validation, targets=(guesses + 1) % 3, clean_targets=(guesses + 1) % 3),
    )
    row = measure(state, full=True)
    assert (row["test_error"], row["validation_error"]) == (0.0, 1.0)
    assert same_bits(state.best["best"][1], first)


def test_a_cheap_row_chooses_no_best_weights() -> None:
    state = make_state()
    measure(state, full=False)
    assert state.best == {}
    measure(state, full=True)
    assert state.best.keys() == {"best", "swa_best"}


BN: dict[str, Any] = {"model": "resnet_tiny", "model_width": 2, "epochs": 1}


def test_averaged_batch_norms_are_measured_in_full_rows_only_with_fitting_statistics() -> None:
    state = make_state(make_data(16, shape=(1, 32, 32)), **BN)
    run_steps(state, 2)
    assert not any(name.startswith("swa") for name in measure(state, full=False))
    measure(state, full=True)
    norms = [m for m in state.average.model.modules() if isinstance(m, nn.BatchNorm2d)]
    seen: list[torch.Tensor] = []
    hook = norms[0].register_forward_pre_hook(lambda _m, x: seen.append(x[0].detach()))
    state.average.model(to_float(state.train.inputs))
    hook.remove()
    torch.testing.assert_close(norms[0].running_mean, seen[0].mean((0, 2, 3)))


def test_measuring_does_not_change_a_network_in_training() -> None:
    state = make_state(make_data(16, shape=(1, 32, 32)), **BN, freeze_bn_stats=True)
    before = copied(state.model), [m.training for m in state.model.modules()]
    measure(state, full=True)
    assert same_bits(copied(state.model), before[0])
    assert [m.training for m in state.model.modules()] == before[1]
    assert isinstance(state.config, TrainConfig)
