"""A small network in training, with one preset of SAM: where the faults strike."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lowland import SAM
from lowland.presets import PRESETS
from lowland.sam import BSAM, MicroBatches

VARIED = ("sam", "wsam_decoupled")
"""Presets that are swept in every variant, and with ``auto``; the others in the plain ones."""


@dataclass(frozen=True)
class Scene:
    """One call that is to be disturbed.

    Attributes:
        preset: Name of the preset.
        engine: ``loop``, ``batched`` or ``auto``.
        m: Examples of a group.
        variant: What else is set up; a key of :data:`VARIANTS`.
    """

    preset: str
    engine: str = "loop"
    m: int | None = None
    variant: str = "later"


class Session:
    """A model in training, whose next call is the one to be disturbed.

    Two sessions of one scene are equal, byte for byte.

    Attributes:
        sam: The SAM.
        module: Its network, with batch norm and dropout.
        optimizer: Its optimizer.
        given: The examples, as the user holds them.
        scale: As ``SAM.backward`` takes it.
    """

    def __init__(self, scene: Scene) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator is the one that must come back
        self._open = ExitStack()
        self.dtype = {"half": torch.bfloat16, "autocast": torch.float32}.get(scene.variant, torch.float64)
        self.module = network().to(self.dtype)
        self.optimizer = _optimizer(scene.preset, self.module)
        self.given: Any = self.examples(1, 5)
        self.scale: Any = 1.0
        self.changes = self.draws = False
        self.sam: SAM = PRESETS[scene.preset](
            list(self.module.parameters()) if scene.variant == "unnamed" else self.module,
            engine=scene.engine,
            **{"m": scene.m, "max_memory": 2**40, **self._options(scene.preset)},
        )
        VARIANTS[scene.variant](self)

    def close(self) -> None:
        """Leaves what the variant switched on."""
        self._open.close()

    def call(self) -> Any:
        """The call, and the moment after it, in which a signal that is on its way arrives."""
        batch = (MicroBatches(self.given),) if isinstance(self.given, list) else self.given
        returned = self.sam.backward(self.loss, *batch, scale=self.scale)
        time.sleep(0)
        return returned

    def step(self) -> None:
        """A whole step of training."""
        self.call()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, x: Tensor, target: dict[str, Any]) -> Tensor:
        """The mean square."""
        if self.changes:
            x.mul_(0.5)
            target["y"].sub_(1.0)
        if self.draws:
            x = x * (1.0 + random.random() + np.random.rand())  # noqa: NPY002
        return (self.module(x) - target["y"]).square().mean()

    def examples(self, seed: int, count: int) -> tuple[Tensor, dict[str, Any]]:
        """A batch: a tensor and a container."""
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(count, *shape, generator=generator) for shape in ((2, 2), (2,)))
        return x.to(self.dtype), {"y": y.to(self.dtype), "more": [y.to(self.dtype)]}

    def enter(self, block: Any) -> None:
        """Opens ``block`` for the length of the session."""
        self._open.enter_context(block)
        self._open.callback(torch.clear_autocast_cache)

    def hook(self) -> None:
        """Hooks of every kind that a call meets."""
        weight = self.module[0].weight
        weight.register_hook(lambda g: 2.0 * g)
        weight.register_post_accumulate_grad_hook(_halved)
        self.module[1].register_forward_hook(_seen)
        self._open.callback(register_module_forward_hook(_seen).remove)

    def _options(self, preset: str) -> dict[str, Any]:
        return {
            "n_sam": {"loader": [self.examples(2, 3), self.examples(3, 2)]},
            "multi_step": {"steps": 2},
            "momentum_sam": {"optimizer": self.optimizer},
            "bsam": {"optimizer": self.optimizer},
            "gsam": {"optimizer": self.optimizer, "max_rho": 0.4, "max_lr": 0.1},
            "wsam_decoupled": {"optimizer": self.optimizer},
            "look_sam": {"k": 2},
        }.get(preset, {})


def network() -> nn.Sequential:
    """Batch norm over positions, so that a group of one example can be normalized."""
    layers = nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(6, 2)
    return nn.Sequential(*layers)


def scenes(presets: list[str], engines: list[str], ms: list[int | None], variants: list[str]) -> list[Scene]:
    """Those asked for that are swept."""
    return [
        Scene(preset, engine, m, variant)
        for variant in variants
        for preset in presets
        for engine in engines
        if preset in VARIED or (variant in PLAIN and engine != "auto")
        for m in ms
    ]


def _optimizer(preset: str, module: nn.Module) -> torch.optim.Optimizer:
    if preset == "bsam":
        return BSAM(module.parameters(), lr=0.1, num_examples=8)
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def _seen(*_: Any) -> None:
    """A hook that changes nothing."""


def _halved(p: Tensor) -> None:
    if p.grad is not None:
        p.grad.mul_(0.5)


def _first(_: Session) -> None:
    """The first call of all: nothing is settled yet."""


def _accumulated(session: Session) -> None:
    session.step()
    for p in list(session.module.parameters())[:3]:
        p.grad = torch.full_like(p, 3.0)


def _hooked(session: Session) -> None:
    session.hook()
    session.step()


def _autocast(session: Session) -> None:
    session.step()
    session.enter(torch.autocast("cpu", dtype=torch.bfloat16))


def _parts(session: Session) -> None:
    session.step()
    session.given = [session.examples(4, 3), session.examples(5, 2)]


def _scaled(session: Session) -> None:
    session.step()
    session.scale = torch.amp.GradScaler("cpu", init_scale=128.0)


def _measured(session: Session) -> None:
    session.sam.diagnostics, session.sam.l2 = True, 0.01
    session.step()


def _changing(session: Session) -> None:
    session.changes = True
    session.step()


def _drawing(session: Session) -> None:
    session.draws = True
    session.step()


VARIANTS: dict[str, Callable[[Session], None]] = {
    "later": Session.step,
    "first": _first,
    "accumulated": _accumulated,
    "hooked": _hooked,
    "autocast": _autocast,
    "parts": _parts,
    "scaled": _scaled,
    "half": Session.step,
    "unnamed": Session.step,
    "measured": _measured,
    "changing": _changing,
    "drawing": _drawing,
}
"""What is done before the call: of ``half`` and ``unnamed`` the session itself knows the rest."""
PLAIN = ("later", "first")
