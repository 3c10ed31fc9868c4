"""SAM behind the interface of an optimizer, for trainers that insist on one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.sam.arguments import check_rho
from lowland.sam.ascent import L2, Ascent, BlindAscent, RememberingAscent, StartingAscent
from lowland.sam.average import Gradients, dense
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.choose import Chosen
from lowland.sam.climbing import Climbing
from lowland.sam.combine import Combine, DecoupledWeighted, ReusingCombine
from lowland.sam.deposit import refuse_unreducible
from lowland.sam.noise import Noise
from lowland.sam.perturb import perturbed
from lowland.sam.precision import is_half, working
from lowland.sam.radii import Radii
from lowland.sam.randomness import RandomState
from lowland.sam.schedule import Schedule, radius
from lowland.sam.vectors import One, Shown
from lowland.sam.workspace import Workspace

Closure = Callable[[], Any]


class SAMOptimizer(Optimizer):
    r"""An optimizer whose step is one of SAM, around another optimizer.

    :class:`~lowland.SAM` does more and needs no wrapper. This is for code that calls an optimizer and
    cannot be changed: the gradient that it finds in ``.grad`` is the one that is climbed, so that m is the
    whole batch of the process. Two ways to call it:

    * ``step(closure)``, where the closure clears the gradients, evaluates the loss, calls ``backward`` and
      returns the loss, as ``torch.optim`` asks. It is called twice, with the same random draws.
    * ``first_step()`` after the backward pass, which moves the weights; then, after another backward pass,
      ``second_step()``, which puts them back and makes the step.

    ``param_groups``, ``state`` and ``defaults`` *are* those of the other optimizer, so schedulers work; a
    group's own ``rho`` is the radius of its parameters.

    Args:
        optimizer: The optimizer that makes the steps.
        rho: Radius of the ascent, or a schedule.
        ascent: Where to climb, and how far; :class:`~lowland.sam.L2` by default.
        combine: What to return from the gradients at :math:`w` and at :math:`w + e`; the latter if ``None``.
        bn_stats: Which passes move running statistics; ``"frozen"`` needs a closure.
        module: The module that is trained, if there is one to name: its buffers and names are then known, and
            in a closure the climb of a ``DistributedDataParallel`` is that of the process.

    Raises:
        TypeError: If ``optimizer`` is not one, or ``ascent`` or ``combine`` is of a kind for ``SAM`` only.
        ValueError: If the model is sharded; in ``step(closure)``, if ``combine`` is given beside a
            ``DistributedDataParallel``, whose two gradients are of the process and of all processes.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> optimizer = SAMOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> x = torch.randn(8, 3)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        rho: float | Schedule,
        ascent: Ascent | None = None,
        combine: Combine | None = None,
        bn_stats: BatchNormStats = "first",
        module: nn.Module | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {_name(optimizer)}.")
        if isinstance(ascent, (BlindAscent, StartingAscent)) or isinstance(combine, DecoupledWeighted):
            part = combine if isinstance(combine, DecoupledWeighted) else ascent
            raise TypeError(
                f"SAMOptimizer must have an ascent along .grad, got {_name(part)}: use lowland.SAM."
            )
        refuse_unreducible(module, [p for g in optimizer.param_groups for p in g["params"]], num_groups=1)
        self.base_optimizer = optimizer
        self.rho = rho
        self.ascent: Ascent = ascent or L2()
        self.combine = combine
        self.bn_stats: BatchNormStats = bn_stats
        self.module = module
        self.steps_done = 0
        self._workspace = Workspace()
        self._open: _OpenStep | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the base optimizer."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """That of the base optimizer."""
        return self.base_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the base optimizer."""
        return self.base_optimizer.defaults

    def __getattr__(self, name: str) -> Any:
        """Whatever else an optimizer has, hooks among it, is the base optimizer's."""
        if name == "base_optimizer":
            raise AttributeError(name)
        return getattr(self.base_optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the wrapper that a learning-rate scheduler puts around ``step``."""
        self._require_unmoved("copied")
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Everything."""
        self.__dict__.update(state)

    def __repr__(self) -> str:
        """Both names and the radius."""
        return f"SAMOptimizer({self.base_optimizer!r}, rho={self.rho})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""
        self.base_optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer's."""
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under ``"sam"`` the steps and the state of the parts."""
        self._require_unmoved("saved")
        parts = {name: part.state_dict() for name, part in self._parts_with_state().items()}
        return {**self.base_optimizer.state_dict(), "sam": {"step": self.steps_done, **parts}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned, or from a state of the base optimizer alone.

        Raises:
            ValueError: If it is that of other parts.
        """
        state = dict(state_dict)
        own, parts = state.pop("sam", None), self._parts_with_state()
        if own is not None and own.keys() != {"step", *parts}:
            raise ValueError(f"state must have the keys {sorted({'step', *parts})}, got {sorted(own)}.")
        self.base_optimizer.load_state_dict(state)
        self.steps_done = 0 if own is None else own["step"]
        for name, part in parts.items():
            if own is not None:
                part.load_state_dict(own[name])

    def step(self, closure: Closure | None = None) -> Any:
        """One step: the closure at the weights, the climb, the closure at the perturbed weights.

        Args:
            closure: Clears the gradients, evaluates the loss, calls ``backward`` and returns the loss.

        Returns:
            What the closure returned at the unperturbed weights.

        Raises:
            TypeError: Without a closure.
        """
        if closure is None:
            raise TypeError(
                "step must be given a closure that evaluates the loss, got none: "
                "without one, call first_step and second_step."
            )
        self._require_unmoved("perturbed")
        before = self._trainable()
        gradients = [p.grad for p in before]
        devices = sorted({p.device for p in before}, key=str)
        draws = RandomState.capture(devices)
        buffers = Buffers(self.module)
        try:
            with buffers.undone_on_error():
                value = self._evaluated(closure, buffers, draws, devices)
        except BaseException:
            self.restore()
            for p, g in zip(before, gradients, strict=True):
                p.grad = g
            draws.restore()
            raise
        self.base_optimizer.step()
        return value

    def first_step(self, zero_grad: bool = False, *, scale: float | torch.amp.GradScaler = 1.0) -> None:
        """Climbs along ``.grad``: the weights move, until :meth:`second_step` or :meth:`restore`.

        Args:
            zero_grad: Whether to clear the gradients afterwards.
            scale: Factor by which the gradients are too large: a ``GradScaler`` that has not unscaled them.

        Raises:
            RuntimeError: If the weights are perturbed already.
            ValueError: With ``bn_stats="frozen"`` or a rule that skips passes, which need a closure.
        """
        self._require_unmoved("perturbed")
        if self.bn_stats == "frozen" or isinstance(self.combine, ReusingCombine):
            option = "bn_stats='frozen'" if self.bn_stats == "frozen" else type(self.combine).__name__
            raise ValueError(f"step(closure) must be used with {option}, got first_step.")
        factor = scale.get_scale() if isinstance(scale, torch.amp.GradScaler) else scale
        chosen = self._chosen()
        open_step = self._climb(chosen, self._radii(chosen), factor)
        if open_step.climbed and self.bn_stats != "both":
            open_step.undo.enter_context(Buffers(self.module).kept())
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """Puts the weights back and makes the base optimizer's step along ``.grad``.

        Args:
            zero_grad: Whether to clear the gradients afterwards.
            scaler: A ``GradScaler`` that is to unscale the gradients, unless it has, and make the step or
                skip it.

        Raises:
            RuntimeError: If there was no :meth:`first_step`.
        """
        open_step = self._open
        if open_step is None:
            raise RuntimeError("second_step must follow first_step, got none.")
        self.restore()
        self._finish(open_step)
        self._opt_called = True  # what a learning-rate scheduler looks for
        if scaler is None:
            self.base_optimizer.step()
        else:
            self._step_scaled(scaler)
        if zero_grad:
            self.zero_grad()

    def restore(self) -> None:
        """Puts the weights back, if they are perturbed, without a step: after an error, say."""
        open_step, self._open = self._open, None
        if open_step is not None:
            open_step.undo.close()

    def _evaluated(
        self, closure: Closure, buffers: Buffers, draws: RandomState, devices: list[torch.device]
    ) -> Any:
        """Both evaluations: leaves the gradient to train with in ``.grad``."""
        no_sync = getattr(self.module, "no_sync", None)
        if no_sync is not None and self.combine is not None:
            raise ValueError("combine must be None in a closure with DistributedDataParallel, got one.")
        chosen = self._chosen()
        radii = self._radii(chosen)
        climbs = radii.rho > 0.0
        reusing = self.combine if isinstance(self.combine, ReusingCombine) else None
        frozen = buffers.kept() if self.bn_stats == "frozen" else nullcontext()
        self.zero_grad()
        with torch.enable_grad(), frozen, no_sync() if no_sync and climbs else nullcontext():
            value = closure()
        if climbs and reusing is not None and not reusing.climbs(self.steps_done):
            self._reuse(reusing)
            return value
        open_step = self._climb(chosen, radii, 1.0)
        after = RandomState.capture(devices)
        if open_step.climbed or (no_sync and climbs):  # all processes reduce, also one that climbed nowhere
            self.zero_grad()
            draws.restore()
            kept = buffers.kept() if self.bn_stats != "both" else nullcontext()
            with torch.enable_grad(), kept:
                closure()
            after.restore()
        self.restore()
        self._finish(open_step)
        return value

    def _radii(self, chosen: Chosen) -> Radii:
        """Radii of the trainable parameters, for the step that comes next."""
        rho = radius(self.rho, self.steps_done)
        pairs = zip(chosen.tensors, chosen.radii, strict=True)
        off = rho == 0.0 and callable(self.rho)
        own = [rho if r is None or off else r for p, r in pairs if p.requires_grad]
        check_rho(own, len(own))
        return Radii.of(own, len(own))

    @torch.no_grad()
    def _climb(self, chosen: Chosen, radii: Radii, scale: float) -> _OpenStep:
        """Moves the weights along ``.grad``, if there is somewhere to climb."""
        rows = [i for i, p in enumerate(chosen.tensors) if p.requires_grad]
        names = None if chosen.names is None else [chosen.names[i] for i in rows]
        params = [chosen.tensors[i] for i in rows]
        gradients = _gradients(params)
        if params and all(g is None for g in gradients):
            raise ValueError(
                "loss must depend on the params, got a gradient for none of them "
                "(it may be the loss of another model)."
            )
        self._open = open_step = _OpenStep(params)
        if radii.rho == 0.0:
            return open_step
        if self.combine is not None:
            open_step.at_weights = [None if g is None else g.clone() for g in gradients]
        needs_noise = getattr(self.ascent, "random", False) or any(is_half(p) for p in params)
        noise = Noise.draw() if needs_noise else None
        how = Climbing(self.ascent, radii, Shown.all_that_move(radii, params, names), noise=noise)
        g = One.along(how.at, gradients, by_row=how.by_row, absent_too=how.absent_too).unscaled(scale)
        if not g.is_finite():
            return open_step
        if how.remembers:
            open_step.memory = [t.clone() for t in g]
        e = how.step(g, None)
        if isinstance(e, One) and e.at is not None and e.norm() > 0.0:
            open_step.climbed = True
            block = perturbed(e.at.params, e.everywhere(), noise=noise, workspace=self._workspace)
            open_step.undo.enter_context(block)
        return open_step

    @torch.no_grad()
    def _finish(self, open_step: _OpenStep) -> None:
        """What is left when both passes went well: the rule, the memory, the count."""
        if self.combine is not None and open_step.climbed:
            after = _gradients(open_step.params)
            combined = self.combine(
                dense(open_step.at_weights, open_step.params), dense(after, open_step.params)
            )
            pairs = zip(open_step.at_weights, after, strict=True)
            _set_gradients(open_step.params, combined, [a is not None or b is not None for a, b in pairs])
        if isinstance(self.ascent, RememberingAscent) and open_step.memory is not None:
            self.ascent.remember(open_step.memory)
        self.steps_done += 1

    @torch.no_grad()
    def _reuse(self, rule: ReusingCombine) -> None:
        params = self._trainable()
        found = _gradients(params)
        _set_gradients(params, rule.reuse(dense(found, params)), [g is not None for g in found])
        self.steps_done += 1

    def _step_scaled(self, scaler: torch.amp.GradScaler) -> None:
        """Lets ``scaler`` make the step; what it noted when it unscaled this optimizer is the base's."""
        noted = scaler._per_optimizer_states
        if id(self) in noted:
            noted[id(self.base_optimizer)] = noted.pop(id(self))
        scaler.step(self.base_optimizer)

    def _trainable(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _chosen(self) -> Chosen:
        if self.module is None:
            return Chosen(self.param_groups)
        names = {id(p): name for name, p in self.module.named_parameters()}
        groups = [
            {**group, "params": [(names.get(id(p), "?"), p) for p in group["params"]], "param_names": None}
            for group in self.param_groups
        ]
        return Chosen(groups)

    def _parts_with_state(self) -> dict[str, Any]:
        parts = {"rho": self.rho, "ascent": self.ascent, "combine": self.combine}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def _require_unmoved(self, what: str) -> None:
        if self._open is not None and self._open.climbed:
            raise RuntimeError(
                f"weights must be put back before they are {what}, got perturbed ones: "
                "call second_step or restore first."
            )


@dataclass
class _OpenStep:
    """A step between its climb and its end.

    Attributes:
        params: The trainable parameters.
        climbed: Whether the weights moved.
        undo: Puts them back.
        at_weights: The gradients of the first pass, if a rule asks for them.
        memory: Those that the ascent is to remember.
    """

    params: list[Tensor]
    climbed: bool = False
    undo: ExitStack = field(default_factory=ExitStack)
    at_weights: Gradients = field(default_factory=list)
    memory: list[Tensor] | None = None


def _gradients(params: Sequence[Tensor]) -> Gradients:
    return [None if p.grad is None else working(p.grad) for p in params]


def _set_gradients(params: Sequence[Tensor], gradients: Sequence[Tensor], used: Sequence[bool]) -> None:
    for p, g, is_used in zip(params, gradients, used, strict=True):
        p.grad = g.to(p.dtype) if is_used else None


def _name(value: object) -> str:
    return type(value).__name__
