"""What was run, in words, from the configs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowland.deep import TrainConfig
from lowland.diagonal.experiment import DiagonalConfig
from lowland.diagonal.theorem2 import Theorem2Config
from lowland.relu.experiment import ReluConfig
from lowland.sweeps import Task, in_levels

_KINDS = {
    "train": ("training run", "training runs"),
    "diagonal": ("experiment on diagonal networks", "experiments on diagonal networks"),
    "relu": ("experiment on ReLU networks", "experiments on ReLU networks"),
    "theorem2": ("experiment on quadratics", "experiments on quadratics"),
    "sharpness": ("measured network", "measured networks"),
    "landscape": ("line between networks", "lines between networks"),
}
_MANY = 12


def caption(tasks: Sequence[Task]) -> str:
    """What the tasks have in common, and what differs between them.

    Options that have their default everywhere are left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for level in in_levels(tasks):
        for task in level:
            described = task.describe()
            groups.setdefault(described.get("command", "train"), []).append(described)
    return " ".join(_sentence(kind, configs) for kind, configs in groups.items())


def not_default(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config is not its default."""
    defaults = _defaults(config.get("command", "train"))
    return {name: value for name, value in config.items() if name == "command" or value != defaults.get(name)}


def _sentence(kind: str, configs: Sequence[Mapping[str, Any]]) -> str:
    defaults = _defaults(kind)
    names = [name for name in configs[0] if name not in {"command", "network", "networks", "seed"}]
    common, varied = [], []
    for name in names:
        values = _distinct([config[name] for config in configs])
        if len(values) > 1:
            varied.append(f"{name} in {_listed(values)}")
        elif values[0] != defaults.get(name):
            common.append(f"{name} {_text(values[0])}")
    seeds = _distinct([config["seed"] for config in configs if "seed" in config])
    one, many = _KINDS[kind]
    parts = [f"1 {one}" if len(configs) == 1 else f"{len(configs)} {many}"]
    parts += [", ".join(common)] if common else []
    parts += [f"varied: {', '.join(varied)}"] if varied else []
    parts += [f"seeds {_listed(seeds)}"] if len(seeds) > 1 else []
    return "; ".join(parts) + "."


def _defaults(kind: str) -> Mapping[str, Any]:
    classes: dict[str, type[TrainConfig | DiagonalConfig | ReluConfig | Theorem2Config]] = {
        "train": TrainConfig,
        "diagonal": DiagonalConfig,
        "relu": ReluConfig,
        "theorem2": Theorem2Config,
    }
    return classes[kind]().to_dict() if kind in classes else {}


def _distinct(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _listed(values: Sequence[Any]) -> str:
    shown = [_text(value) for value in values[:_MANY]]
    return ", ".join(shown) + (f" and {len(values) - _MANY} more" if len(values) > _MANY else "")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(_text(one) for one in value) + ")"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)
