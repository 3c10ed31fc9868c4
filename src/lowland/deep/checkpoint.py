"""A training state in one safetensors file, from which it continues bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowland.deep.state import TrainState
from lowland.errors import InputError
from lowland.runs import replace_atomically

FORMAT = 1


def save_checkpoint(path: Path, state: TrainState, **progress: Any) -> None:
    """Replaces the checkpoint at ``path`` atomically by one of ``state``.

    Args:
        path: The file.
        state: The training state.
        progress: JSON values of the caller's own, returned by :func:`load_checkpoint`.

    Raises:
        OSError: If it cannot be written; the checkpoint that was there is whole.
    """
    optimizer_tensors, optimizer_values = _flatten_optimizer(state.optimizer)
    tensors = {
        **_prefixed("model", state.model.state_dict()),
        **_prefixed("average", state.average.model.state_dict()),
        **_prefixed("optimizer", optimizer_tensors),
        **{
            k: t for kind, (_, best) in state.best.items() for k, t in _prefixed(f"best:{kind}", best).items()
        },
        **_prefixed("previous", dict(zip(("images", "labels"), state.previous or (), strict=False))),
        "sums": state.sums,
        "kept": state.kept,
    }
    values = {
        "format": FORMAT,
        "epoch": state.epoch,
        "iteration": state.iteration,
        "steps": state.steps,
        "seen": state.seen,
        "lr": state.last_learning_rate,
        "rho": state.last_rho,
        "tensors": sorted(tensors),
        "best": {kind: error for kind, (error, _) in state.best.items()},
        "optimizer": optimizer_values,
        "scaler": state.scaler.state_dict(),
        "progress": progress,
    }
    write_tensors(path, tensors, {"state": json.dumps(values)})


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Sets ``state`` to what the checkpoint holds, and returns the caller's own ``progress``.

    Raises:
        InputError: If the file is not a whole checkpoint of such a state.
    """
    try:
        with safe_open(path, framework="pt", device=str(state.device)) as file:
            values = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if values["format"] != FORMAT:
            raise InputError(f"{path} must be a checkpoint of format {FORMAT}, got {values['format']}.")
        if values["tensors"] != sorted(tensors):
            raise ValueError("its tensors are not those that it lists")
        _check_values(values)
        _restore(state, tensors, values)
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} must be a whole checkpoint of this run: {reason}.") from None
    progress: dict[str, Any] = values["progress"]
    return progress


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically.

    Raises:
        OSError: If it cannot be written; the file that was there is whole.
    """
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    try:
        replace_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path} could not be written: {error}") from error


def _restore(state: TrainState, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    state.model.load_state_dict(_under("model", tensors))
    state.average.model.load_state_dict(_under("average", tensors))
    _restore_optimizer(state.optimizer, _under("optimizer", tensors), values["optimizer"])
    state.scaler.load_state_dict(values["scaler"])
    state.best = {kind: (e, _under(f"best:{kind}", tensors)) for kind, e in values["best"].items()}
    previous = _under("previous", tensors)
    state.previous = (previous["images"], previous["labels"]) if previous else None
    if len(tensors["kept"]) < len(state.kept):
        state.keep(tensors["kept"])
    state.sums = tensors["sums"]
    state.epoch, state.iteration = values["epoch"], values["iteration"]
    state.steps, state.seen = values["steps"], values["seen"]
    state.last_learning_rate, state.last_rho = values["lr"], values["rho"]


def _check_values(values: Mapping[str, Any]) -> None:
    for name in ("epoch", "iteration", "steps", "seen"):
        if type(values[name]) is not int or values[name] < 0:
            raise ValueError(f"its {name} is {values[name]!r}")
    for name, value in {"lr": values["lr"], "rho": values["rho"], **values["best"]}.items():
        if not isinstance(value, (int, float)):
            raise TypeError(f"its {name} is {value!r}")
    if not isinstance(values["scaler"], dict):
        raise TypeError(f"its scaler is {values['scaler']!r}")


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors and JSON values by ``index.name``; its options are the config's."""
    flat = {
        f"{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in flat.items() if not isinstance(value, Tensor)}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    entries: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **values}.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
