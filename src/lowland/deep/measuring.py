"""One row of a run's metrics."""

from __future__ import annotations

from typing import Any

import torch

from lowland.deep.averaging import has_batch_norm, reestimate_batch_norm
from lowland.deep.evaluation import SMALL_RHO, evaluate, one_step_sharpness, robust_error
from lowland.deep.objective import as_given
from lowland.deep.records import chosen_by
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
    for name, split in (state.data.parts | {"train": state.train}).items():
        row |= evaluate(
            config, state.model, split, state.criterion, prefix=name, limit=limit, ranks=state.ranks
        )
    row |= _sharpness(state)
    if config.attack != "none":
        row["test_error_robust"] = robust_error(
            config, state.model, state.data.test, limit=limit, ranks=state.ranks
        )
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
        **({"running_error": error} if state.criterion.has_errors else {}),
        "lr": state.last_learning_rate,
        "rho": state.last_rho,
    }


def _sharpness(state: TrainState) -> dict[str, float]:
    config, rho = state.config, state.config.sam_rho
    radii = {"sharpness_small": SMALL_RHO} | ({"sharpness_rho": rho} if rho > 0 else {})
    return {
        name: one_step_sharpness(config, state.model, state.train, state.criterion, rho=radius)
        for name, radius in radii.items()
    }


def _averaged(state: TrainState, *, limit: int, full: bool) -> dict[str, float]:
    model, config = state.average.model, state.config
    if has_batch_norm(model):
        if not full:
            return {}
        size = config.batch_size_eval
        columns = [torch.split(argument, size) for argument in state.train.arguments]
        reestimate_batch_norm(
            model, ([as_given(config, a) for a in batch] for batch in zip(*columns, strict=True))
        )
    row: dict[str, float] = {}
    for name in ("validation", "test"):
        split = state.data.parts[name]
        row |= evaluate(
            config, model, split, state.criterion, prefix=f"swa_{name}", limit=limit, ranks=state.ranks
        )
    return row


def _remember_best(state: TrainState, row: dict[str, Any]) -> None:
    for kind, prefix, model in (("best", "", state.model), ("swa_best", "swa_", state.average.model)):
        state.remember_best(kind, row[prefix + chosen_by(row)], model)
