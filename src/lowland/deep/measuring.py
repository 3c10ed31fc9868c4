"""One row of a run's metrics."""

from __future__ import annotations

from typing import Any

import torch

from lowland.deep.averaging import has_batch_norm, reestimate_batch_norm
from lowland.deep.data import to_float
from lowland.deep.evaluation import SMALL_RHO, evaluate, one_step_sharpness, robust_error
from lowland.deep.state import TrainState


def measure(state: TrainState, *, full: bool) -> dict[str, Any]:
    """What is to be said of ``state`` now: running means, losses, errors, sharpness.

    A full evaluation uses up to ``n_final_eval`` examples of each split and may become the best on the
    validation examples; a cheap one uses up to ``n_eval_every_k_iter``, and leaves out averaged weights
    whose batch-norm statistics would need a pass over the training set. Errors are in [0, 1]. A quantity
    that was not measured is absent.
    """
    config = state.config
    limit = config.n_final_eval if full else config.n_eval_every_k_iter
    row: dict[str, Any] = {
        "epoch": state.epoch - 1 + state.iteration / state.steps_per_epoch,
        "step": state.steps,
        "full": full,
        **_running_means(state),
    }
    for name, split in (
        ("train", state.train),
        ("validation", state.data.validation),
        ("test", state.data.test),
    ):
        row |= evaluate(config, state.model, split, prefix=name, limit=limit)
    row |= _sharpness(state)
    if config.attack != "none":
        row["test_error_robust"] = robust_error(config, state.model, state.data.test, limit=limit)
    row |= _averaged(state, limit=limit, full=full)
    if full:
        _remember_best(state, row)
    return row


def _running_means(state: TrainState) -> dict[str, float]:
    """Means over the training steps since the last row, each at the weights of its step."""
    if state.seen == 0:
        return {}
    objective, loss, error = (state.sums / state.seen).tolist()
    return {
        "train_objective": objective,
        "running_loss": loss,
        "running_error": error,
        "lr": state.last_learning_rate,
        "rho": state.last_rho,
    }


def _sharpness(state: TrainState) -> dict[str, float]:
    row = {"sharpness_small": one_step_sharpness(state.config, state.model, state.train, rho=SMALL_RHO)}
    if state.config.sam_rho > 0:
        rho = state.config.sam_rho
        row["sharpness_rho"] = one_step_sharpness(state.config, state.model, state.train, rho=rho)
    return row


def _averaged(state: TrainState, *, limit: int, full: bool) -> dict[str, float]:
    model = state.average.model
    if has_batch_norm(model):
        if not full:
            return {}
        size = state.config.batch_size_eval
        batches = torch.split(state.train.images, size)
        reestimate_batch_norm(model, (to_float(images) for images in batches))
    row: dict[str, float] = {}
    for name, split in (("swa_validation", state.data.validation), ("swa_test", state.data.test)):
        row |= evaluate(state.config, model, split, prefix=name, limit=limit)
    return row


def _remember_best(state: TrainState, row: dict[str, Any]) -> None:
    state.remember_best("best", row["validation_error"], state.model)
    state.remember_best("swa_best", row["swa_validation_error"], state.average.model)
