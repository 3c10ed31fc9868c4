"""The options of ``SAM`` as types, for functions that hand them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict

from torch.distributed import ProcessGroup

from lowland.sam.ascent import Ascent, BlindAscent
from lowland.sam.buffers import BatchNormStats
from lowland.sam.choice import Capture, Engine
from lowland.sam.combine import Combine
from lowland.sam.objective import Reduction, Weight
from lowland.sam.schedule import Schedule
from lowland.sam.source import AscentSource


class _Rest(TypedDict, total=False):
    l2: float
    bn_stats: BatchNormStats
    weight: Weight | None
    reduction: Reduction
    shared: Sequence[str]
    rows: Sequence[str]
    process_group: ProcessGroup | None
    engine: Engine
    max_memory: int | None
    diagnostics: bool
    capture: Capture


class _M(TypedDict, total=False):
    m: int | None


class _Ascent(TypedDict, total=False):
    ascent: Ascent | BlindAscent | None


class _Perturb(TypedDict, total=False):
    perturb: str | Sequence[str] | None


class _Source(TypedDict, total=False):
    source: AscentSource | None


class _Combine(TypedDict, total=False):
    combine: Combine | None


class _Steps(TypedDict, total=False):
    steps: int
    step_size: float


class ButM(_Rest, _Ascent, _Perturb, _Source, _Combine, _Steps):
    """What :class:`~lowland.SAM` takes, but ``m``."""


class ButAscent(_Rest, _M, _Perturb, _Source, _Combine, _Steps):
    """What :class:`~lowland.SAM` takes, but ``ascent``."""


class ButPerturb(_Rest, _M, _Ascent, _Source, _Combine, _Steps):
    """What :class:`~lowland.SAM` takes, but ``perturb``."""


class ButSource(_Rest, _M, _Ascent, _Perturb, _Combine, _Steps):
    """What :class:`~lowland.SAM` takes, but ``source``."""


class ButCombine(_Rest, _M, _Ascent, _Perturb, _Source, _Steps):
    """What :class:`~lowland.SAM` takes, but ``combine``."""


class ButSteps(_Rest, _M, _Ascent, _Perturb, _Source, _Combine):
    """What :class:`~lowland.SAM` takes, but ``steps`` and ``step_size``."""


class ButRho(ButM, _M):
    """What :class:`~lowland.SAM` takes, but ``rho``."""


class SAMOptions(ButRho):
    """What :class:`~lowland.SAM` takes beside the params."""

    rho: Required[float | Schedule]
