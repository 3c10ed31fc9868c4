"""A training state in one safetensors file, from which it continues bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.deep.config import TrainConfig
from lowland.deep.records import CheckpointRecord
from lowland.deep.state import TrainState
from lowland.deep.tensors import is_sealed, read_metadata, read_tensors, write_tensors
from lowland.deep.weights import require_fits
from lowland.errors import InputError
from lowland.runs import conform
from lowland.runs.schema import parse_json

FORMAT = 2
"""1 had neither a checksum nor the config."""


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
        **_prefixed("previous", _previous(state.previous)),
        "sums": state.sums,
        "kept": state.kept,
    }
    values = {
        "format": FORMAT,
        "config": state.config.to_dict(),
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
    tensors, metadata = read_tensors(path, device=str(state.device))
    values = _values(path, metadata)
    _require_same(path, values, state.config)
    if values["tensors"] != sorted(tensors):
        raise InputError(f"{path} must be a whole checkpoint of this run, it lacks tensors that it lists.")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # of its own, not the file's memory
    try:
        _restore(path, state, tensors, values)
    except InputError:
        raise
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} must be a whole checkpoint of this run: {error}.") from None
    progress: dict[str, Any] = values["progress"]
    return progress


def require_config(path: Path, config: TrainConfig) -> None:
    """Raises :class:`InputError` unless the file is a whole checkpoint of a run of ``config``.

    Device, threads and folder of the data are no part of a config: a run may go on with others.
    """
    _require_same(path, _values(path, read_metadata(path)), config)


def saved_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The ``state_dict`` of each kind that a checkpoint has: as a run's weights file holds them in the end.

    Raises:
        InputError: If the file is not a whole checkpoint.
    """
    tensors, metadata = read_tensors(path)
    kinds = {"last": "model", "swa_last": "average"}
    kinds |= {kind: f"best:{kind}" for kind in _values(path, metadata)["best"]}
    return {kind: _under(prefix, tensors) for kind, prefix in kinds.items()}


_PREVIOUS = ("images", "mask", "labels")
"""What a checkpoint calls the inputs, the mask and the targets of the last batch."""


def _previous(batch: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
    names = _PREVIOUS if batch is not None and len(batch) == len(_PREVIOUS) else (_PREVIOUS[0], _PREVIOUS[-1])
    return dict(zip(names, batch or (), strict=False))


def _values(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the checkpoint holds beside tensors."""
    try:
        values = parse_json(metadata["state"])
    except (KeyError, ValueError):
        raise InputError(f"{path} must be a checkpoint of lowland train, it holds something else.") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT or not is_sealed(metadata):
        raise InputError(
            f"{path} must be a checkpoint of format {FORMAT} with a checksum, got format {found}; "
            "another version of lowland continues it."
        )
    for name in ("epoch", "iteration", "steps", "seen"):
        if isinstance(values.get(name), int) and values[name] < 0:
            raise InputError(f"{name} of {path} must be non-negative, got {values[name]}.")
    checked: dict[str, Any] = conform(values, CheckpointRecord, "", of=f" of {path}")
    return checked


def _require_same(path: Path, values: Mapping[str, Any], config: TrainConfig) -> None:
    wanted = config.to_dict()
    stored = (
        TrainConfig().to_dict() | values["config"]
    )  # an option that is newer than the run had its default
    differing = [name for name in {**wanted, **stored} if stored[name] != wanted.get(name)]
    if differing:
        options = ", ".join(
            f"{name} ({stored[name]!r} there, {wanted.get(name)!r} here)" for name in differing
        )
        raise InputError(f"{path} must be of this config, but it is of another {options}.")


def _restore(path: Path, state: TrainState, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    require_fits(state.model, _under("model", tensors), path)
    require_fits(state.average.model, _under("average", tensors), path)
    state.model.load_state_dict(_under("model", tensors))
    state.average.model.load_state_dict(_under("average", tensors))
    _restore_optimizer(state.optimizer, _under("optimizer", tensors), values["optimizer"])
    state.scaler.load_state_dict(values["scaler"])
    state.best = {kind: (e, _under(f"best:{kind}", tensors)) for kind, e in values["best"].items()}
    previous = _under("previous", tensors)
    state.previous = tuple(previous[name] for name in _PREVIOUS if name in previous) or None
    if len(tensors["kept"]) < len(state.kept):
        state.keep(tensors["kept"])
    state.sums = tensors["sums"]
    state.epoch, state.iteration = values["epoch"], values["iteration"]
    state.steps, state.seen = values["steps"], values["seen"]
    state.last_learning_rate, state.last_rho = values["lr"], values["rho"]


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
