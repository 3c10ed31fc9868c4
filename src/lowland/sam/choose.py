"""Which parameters there are, what they are called, and which ones are perturbed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lowland.sam.pieces import names_and_parameters

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]


class Chosen:
    """Parameters in any way that an optimizer takes them: each once, in order.

    Args:
        params: A module, parameters, named parameters or parameter groups.

    Attributes:
        tensors: The parameters.
        names: Their names; ``None`` if they were given without.
        radii: For each the ``rho`` of its parameter group; ``None`` where it has none of its own.

    Raises:
        TypeError: If ``params`` is of another kind.
    """

    def __init__(self, params: Params) -> None:
        found: dict[int, tuple[str | None, Tensor, float | None]] = {}
        for name, tensor, rho in _listed(params, None):
            found.setdefault(id(tensor), (name, tensor, rho))
        self.tensors = [tensor for _, tensor, _ in found.values()]
        names = [name for name, _, _ in found.values() if name is not None]
        self.names = names if len(names) == len(self.tensors) else None
        self.radii = [rho for _, _, rho in found.values()]

    def matching(self, patterns: str | Sequence[str]) -> list[bool]:
        """For each parameter whether its name is, or matches, one of ``patterns``.

        Raises:
            ValueError: If there are no names, or a pattern matches none.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        if not patterns:
            raise ValueError("perturb must name or match at least one parameter, got none.")
        if self.names is None:
            raise ValueError(
                "perturb needs names: params must be a module or named parameters, "
                "got parameters without names."
            )
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.names):
                shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
                raise ValueError(f"perturb must name or match parameters ({shown}), got {pattern!r}.")
        return [any(fnmatchcase(name, pattern) for pattern in patterns) for name in self.names]


def is_trained(p: Any) -> bool:
    """Whether a parameter is not frozen, and has memory. What is no tensor is refused later, by its type."""
    return not isinstance(p, Tensor) or (p.requires_grad and p.device.type != "meta")


def norm_layers(module: nn.Module) -> list[str]:
    """Names of the parameters of a module's normalization layers, for SAM-ON (Müller et al., 2023).

    A layer counts as one if its class is called so: ``BatchNorm2d``, ``LayerNorm``, ``LlamaRMSNorm``.

    Args:
        module: The module, with all that is in it.

    Returns:
        The names, as :meth:`torch.nn.Module.named_parameters` has them; none if it does not normalize.

    Example:
        >>> from torch import nn
        >>> from lowland.sam import norm_layers
        >>> norm_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        ['1.weight', '1.bias']
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules()
        if "norm" in type(layer).__name__.lower()
        for name, _ in layer.named_parameters(recurse=False)
    ]


def _listed(params: Any, rho: float | None) -> Iterable[tuple[str | None, Any, float | None]]:
    if isinstance(params, nn.Module):
        yield from ((name, tensor, rho) for name, tensor in names_and_parameters(params))
        return
    if isinstance(params, (Tensor, str, Mapping)):
        raise TypeError(
            "params must be a module, or an iterable of parameters, named parameters or parameter groups, "
            f"got {type(params).__name__}."
        )
    for item in params:
        if isinstance(item, Mapping):
            of_group = item["params"]
            names = item.get("param_names")
            of_group = [of_group] if isinstance(of_group, Tensor) else list(of_group)
            if names is not None and len(names) == len(of_group):
                of_group = list(zip(names, of_group, strict=True))
            yield from _listed(of_group, item.get("rho", rho))
        elif isinstance(item, tuple):
            yield item[0], item[1], rho
        else:
            yield None, item, rho
