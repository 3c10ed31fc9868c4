"""Weights from a file: ours, or a checkpoint of the original code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland.deep.pickled import read_pickle
from lowland.deep.tensors import read_tensors
from lowland.errors import InputError, one_of

KINDS = ("last", "best", "swa_last", "swa_best")
_NUMBERS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""Types of entries that weights can be copied from."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers of a network put before all names of its ``state_dict``."""


def load_weights(model: nn.Module, path: Path, *, kind: str = "last") -> None:
    """Loads weights into ``model``, all of them or none.

    Args:
        model: The network; unchanged on error.
        path: A run directory, a safetensors file (with the four kinds of a run, or one plain
            ``state_dict``), or a ``.pth``, of the original code, of a plain ``state_dict`` or of one beside
            other things, read without running anything in it. Names may have the prefix of a wrapper,
            ``module.`` or ``_orig_mod.``.
        kind: ``last``, ``best`` (by validation), ``swa_last`` or ``swa_best``, where the file has several.

    Raises:
        InputError: If there is no such file, it cannot be read, or its names or shapes are not the
            model's; the first differing names are listed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from lowland.deep import load_weights
        >>> trained, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(trained.state_dict(), Path(folder) / "weights.safetensors")
        ...     load_weights(model, Path(folder) / "weights.safetensors")
        >>> torch.equal(model.weight, trained.weight)
        True
    """
    one_of("model_type", kind, KINDS)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(f"model_path must be a run directory or a file of weights, but there is no {path}.")
    states = read_pickle(path) if path.suffix in {".pth", ".pt"} else read_states(path)
    put_weights(model, states, path, kind=kind)


def put_weights(
    model: nn.Module, states: Mapping[str, Mapping[str, Any]], path: Path, *, kind: str = "last"
) -> None:
    """Loads one of the states of a file into ``model``, all of it or none.

    Raises:
        InputError: If there is no such state, or it is not the model's.
    """
    if kind != "last" and set(states) == {""}:
        raise InputError(
            f"{path} must hold the weights {kind!r}, it holds weights of one kind, without a name."
        )
    if kind not in states and set(states) != {""}:
        raise InputError(f"{path} must hold the weights {kind!r}, it holds {', '.join(map(repr, states))}.")
    state = _unwrapped(states.get(kind, states.get("", {})), model)
    require_fits(model, state, path)
    model.load_state_dict(state)


def _unwrapped(state: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The entries under the names that they have without ``DistributedDataParallel`` or ``torch.compile``."""
    names = model.state_dict()
    for prefix in _WRAPPERS:
        if state and _all_begin(state, prefix) and not _all_begin(names, prefix):
            return _unwrapped({str(name)[len(prefix) :]: entry for name, entry in state.items()}, model)
    return state


def _all_begin(names: Iterable[Any], prefix: str) -> bool:
    return all(str(name).startswith(prefix) for name in names)


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The ``state_dict`` of each kind in a safetensors file; of a plain one under the empty name.

    Args:
        path: The file.

    Raises:
        InputError: If the file is not a whole safetensors file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from lowland.deep import read_states
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     save_file({"last.bias": torch.ones(2), "best.bias": torch.zeros(2)}, path)
        ...     found = read_states(path)
        >>> sorted(found), found["last"]["bias"]
        (['best', 'last'], tensor([1., 1.]))
    """
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(path)[0].items():
        kind, dot, rest = name.partition(".")
        kind, key = (kind, rest) if dot and kind in KINDS else ("", name)
        states.setdefault(kind, {})[key] = tensor
    return states


def require_fits(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Raises :class:`InputError`, with the first differences, unless ``state`` is one of such a model."""
    wanted = {name: _shape(t.shape) for name, t in model.state_dict().items()}
    got = {name: _described(entry) for name, entry in state.items()}
    differing = [
        f"{name} ({wanted.get(name, 'none')} needed, {got.get(name, 'none')} in the file)"
        for name in {**wanted, **got}
        if wanted.get(name) != got.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{path} must hold this model's weights, but differs in {', '.join(differing[:3])}{more}."
        )


def _described(entry: Any) -> str:
    """The shape of a tensor that can be copied from, or what is there in its place."""
    if not isinstance(entry, Tensor):
        return type(entry).__name__
    if entry.is_quantized:
        return "quantized"
    if entry.layout != torch.strided or entry.is_nested:
        return "sparse"
    if entry.is_meta:
        return "without data"
    return _shape(entry.shape) if entry.dtype in _NUMBERS else str(entry.dtype)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
