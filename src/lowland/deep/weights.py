"""Weights from a file: ours, or a checkpoint of the original code."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowland.errors import InputError, one_of

KINDS = ("last", "best", "swa_last", "swa_best")


def load_weights(model: nn.Module, path: Path, *, kind: str = "last") -> None:
    """Loads weights into ``model``, all of them or none.

    Args:
        model: The network; unchanged on error.
        path: A run directory, a safetensors file (with the four kinds of a run, or one plain
            ``state_dict``), or a ``.pth`` of the original code, read without running anything in it.
        kind: ``last``, ``best`` (by validation), ``swa_last`` or ``swa_best``, where the file has several.

    Raises:
        InputError: If there is no such file, it cannot be read, or its names or shapes are not the
            model's; the first differing names are listed.
    """
    one_of("model_type", kind, KINDS)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(f"model_path must be a run directory or a file of weights, but there is no {path}.")
    states = _read_pickle(path) if path.suffix in {".pth", ".pt"} else read_states(path)
    if kind not in states and set(states) != {""}:
        raise InputError(f"{path} must hold the weights {kind!r}, it holds {', '.join(map(repr, states))}.")
    state = states.get(kind, states.get("", {}))
    _check_fits(model, state, path)
    model.load_state_dict(state)


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The ``state_dict`` of each kind in a safetensors file; of a plain one under the empty name.

    Raises:
        InputError: If the file is not a whole safetensors file.
    """
    states: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                kind, dot, rest = name.partition(".")
                kind, key = (kind, rest) if dot and kind in KINDS else ("", name)
                states.setdefault(kind, {})[key] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} must be a whole safetensors file: {error}.") from None
    return states


def _read_pickle(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        struct.error,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} must be a checkpoint of tensors only: {reason}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold a state_dict, got {type(content).__name__}.")
    nested = {kind: dict(content[kind]) for kind in KINDS if isinstance(content.get(kind), Mapping)}
    return nested or {"": dict(content)}


def _check_fits(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    got = {name: tuple(t.shape) if isinstance(t, Tensor) else None for name, t in state.items()}
    differing = [
        f"{name} ({_shape(wanted.get(name))} needed, {_shape(got.get(name))} in the file)"
        for name in {**wanted, **got}
        if name not in wanted or wanted[name] != got.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{path} must hold this model's weights, but differs in {', '.join(differing[:3])}{more}."
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "scalar"
