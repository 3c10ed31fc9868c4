"""SAM behind the interface of an optimizer, for trainers that insist on one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowland.sam.arguments import check_along_gradient, check_rho
from lowland.sam.ascent import L2, Ascent
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.choice import OF_SAM
from lowland.sam.choose import Chosen
from lowland.sam.combine import Combine
from lowland.sam.part import Call, Parts, Way, brief
from lowland.sam.pieces import is_cut
from lowland.sam.radii import Radii
from lowland.sam.randomness import RandomState
from lowland.sam.schedule import Schedule, radii_at
from lowland.sam.trainers.open_step import OpenStep
from lowland.sam.workspace import Workspace

Closure = Callable[[], Any]


class SAMOptimizer(Optimizer):
    """An optimizer whose step is one of SAM, around another optimizer.

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
        >>> import torch
        >>> from lowland import SAMOptimizer
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> optimizer = SAMOptimizer(torch.optim.SGD(w, lr=0.1), rho=1.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = sum(t.square().sum() for t in w) / 2  # its gradient is w, of norm 5
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()
        12.5
        >>> [round(t.item(), 4) for t in w]
        [2.64, 3.52]
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
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        if is_cut(module, [p for g in optimizer.param_groups for p in g["params"]]):
            raise ValueError(
                "SAMOptimizer must have whole parameters, got some that FSDP has sharded: use lowland.SAM."
            )
        if isinstance(module, DistributedDataParallel) and module.static_graph:
            raise ValueError(
                "DistributedDataParallel must have static_graph=False in SAMOptimizer, got True: "
                "lowland.SAM takes it."
            )
        self.base_optimizer = optimizer
        self.rho = rho
        self.ascent: Ascent = L2() if ascent is None else ascent
        self.combine = combine
        self.bn_stats: BatchNormStats = bn_stats
        self.module = module
        self.steps_done = 0
        self._workspace = Workspace()
        self._open: OpenStep | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Takes options if their values are such."""
        if name in OF_SAM:
            OF_SAM[name](name, value)
        if name in ("ascent", "combine"):
            check_along_gradient(value)
        super().__setattr__(name, value)

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
        return f"SAMOptimizer({self.base_optimizer!r}, rho={brief(self.rho)})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients.

        Args:
            set_to_none: Whether they are then ``None``; otherwise 0.
        """
        self.base_optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer's.

        Args:
            param_group: The group, with a ``rho`` of its own perhaps.
        """
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under ``"sam"`` the steps and the state of the parts."""
        self._require_unmoved("saved")
        own = {"step": self.steps_done, **self._parts().state_dict()}
        return {**self.base_optimizer.state_dict(), "sam": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned, or from a state of the base optimizer alone.

        Args:
            state_dict: That state.

        Raises:
            ValueError: If it is that of other parts.
        """
        state, parts = dict(state_dict), self._parts()
        own, undo = state.pop("sam", None), parts.kept()
        steps_done = 0 if own is None else parts.load_state_dict(own)
        try:
            self.base_optimizer.load_state_dict(state)
        except BaseException:
            undo()
            raise
        self.steps_done = steps_done

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
        if self.bn_stats == "frozen":
            raise ValueError("step(closure) must be used with bn_stats='frozen', got first_step.")
        factor = scale.get_scale() if isinstance(scale, torch.amp.GradScaler) else scale
        try:
            open_step = self._begun("first_step")
            open_step.climb(self.ascent, factor, self._workspace, keep=self.combine is not None)
            if open_step.climbed and self.bn_stats != "both":
                open_step.undo.enter_context(Buffers(self.module).kept())
        except BaseException:
            self.restore()
            raise
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
        if self._open is None:
            raise RuntimeError("second_step must follow first_step, got none.")
        self._finish(self._open)
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
            open_step.put_back_all()

    def _evaluated(
        self, closure: Closure, buffers: Buffers, draws: RandomState, devices: list[torch.device]
    ) -> Any:
        """Both evaluations: leaves the gradient to train with in ``.grad``."""
        no_sync = getattr(self.module, "no_sync", None)
        if no_sync is not None and self.combine is not None:
            raise ValueError("combine must be None in a closure with DistributedDataParallel, got one.")
        open_step = self._begun("step(closure)")
        climbs = open_step.call.climbs
        frozen = buffers.kept() if self.bn_stats == "frozen" else nullcontext()
        self.zero_grad()
        with torch.enable_grad(), frozen, no_sync() if no_sync and climbs else nullcontext():
            value = closure()
        open_step.climb(self.ascent, 1.0, self._workspace, keep=self.combine is not None)
        after = RandomState.capture(devices)
        if open_step.climbed or (no_sync and climbs):  # all processes reduce, also one that climbed nowhere
            self.zero_grad()
            draws.restore()
            kept = buffers.kept() if self.bn_stats != "both" else nullcontext()
            with torch.enable_grad(), kept:
                closure()
            after.restore()
        self._finish(open_step)
        return value

    def _begun(self, way: Way) -> OpenStep:
        """The step that comes next, of which the parts were told."""
        chosen = self._chosen()
        rows = [i for i, p in enumerate(chosen.tensors) if p.requires_grad]
        parts = self._parts()
        self._open = open_step = OpenStep(
            Call(self.steps_done, [chosen.tensors[i] for i in rows], way),
            None if chosen.names is None else [chosen.names[i] for i in rows],
            parts.kept(),
        )
        radii = radii_at(self.rho, self.steps_done, chosen.radii)
        own = [radii[i] for i in rows]
        check_rho(own, len(own))
        open_step.radii = Radii.of(own, len(own))
        open_step.call.climbs = open_step.radii.rho > 0.0
        parts.begin(open_step.call)
        return open_step

    def _finish(self, open_step: OpenStep) -> None:
        """What is left when both passes went well: the weights, the rule, the parts, the count."""
        open_step.undo.close()
        open_step.end(self.combine, self._parts())
        self._open = None
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

    def _parts(self) -> Parts:
        return Parts(rho=self.rho, ascent=self.ascent, combine=self.combine)

    def _require_unmoved(self, what: str) -> None:
        if self._open is not None and self._open.climbed:
            raise RuntimeError(
                f"weights must be put back before they are {what}, got perturbed ones: "
                "call second_step or restore first."
            )
