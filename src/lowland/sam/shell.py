"""``SAM``: in place of ``loss.backward()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lowland.sam.alone import Alone
from lowland.sam.arguments import check_together
from lowland.sam.ascent import L2, Ascent, BlindAscent
from lowland.sam.batch import MicroBatches
from lowland.sam.buffers import BatchNormStats
from lowland.sam.captures import Captures, reason_against, refuse_recording
from lowland.sam.choice import OF_SAM, Capture, Engine, non_negative
from lowland.sam.choose import Chosen, Params, is_trained
from lowland.sam.combine import Combine
from lowland.sam.deposit import as_loss
from lowland.sam.diagnostics import Diagnostics
from lowland.sam.finish import Finish
from lowland.sam.gradient import sam_gradient
from lowland.sam.objective import Loss, Reduction, Weight
from lowland.sam.part import Call, Parts, Way
from lowland.sam.pieces import has_gradient, is_cut, refuse_unknown
from lowland.sam.precision import working
from lowland.sam.schedule import Schedule, radii_at
from lowland.sam.source import AscentSource
from lowland.sam.total import SAMGradient
from lowland.sam.understood import OWN, shown_options, understood, unknown
from lowland.sam.workspace import Workspace

Scale = float | Tensor | torch.amp.GradScaler
AscentBatch = tuple[Any, ...] | MicroBatches | None

_REFUSAL = "a SAM must make one gradient at a time, got a call inside its own loss or in another thread."
_HANDED_ON = tuple(name for name in OF_SAM if name not in {"rho", "perturb", "source", "capture"})


class SAM:
    r"""Sharpness-aware minimization as a gradient: ``backward`` in place of ``loss.backward()``.

    The optimizer, its schedule, clipping, accumulation and mixed precision stay the user's and work as
    without SAM. Frozen parameters (``requires_grad=False``) are neither perturbed nor trained.

    See :func:`~lowland.sam.sam_gradient`, whose shell this is, for the mathematics and the errors.

    Args:
        params: A module (best: its names are then known, and its parameters are those that it has in each
            call), parameters, named parameters, or parameter groups as an optimizer takes them; a group's
            own ``rho`` is the radius of its parameters, unless a schedule is at 0, and 0 leaves them
            unperturbed.
        rho: Radius of the ascent, or a schedule: a function of the number of steps done. May be assigned at
            any time, as may the other options.
        m: Examples that share one perturbation; ``None`` means the whole batch.
        ascent: Where to climb, and how far; :class:`~lowland.sam.L2` by default.
        perturb: Names, or patterns of names, of the parameters to perturb; all by default. The ascent's norm
            is taken over them.
        source: Where the examples come from that the climb sees; by default they are the batch's own.
        combine: What to return from the gradients at :math:`w` and at :math:`w + e`; the latter if ``None``.
        steps: Number of ascent steps.
        step_size: Size of one ascent step in units of ``rho``.
        l2: Weight of :math:`\frac\lambda2 \|w\|_2^2` inside the objective and the climb.
        bn_stats: Which passes move running statistics: ``"first"``, ``"both"`` or ``"frozen"``.
        weight: Weight of a group in the mean over groups, in place of its number of examples.
        reduction: ``"sum"`` for a loss that adds up its examples; by default it is their mean.
        shared: Names of entries of the batch that every group is given whole.
        rows: Names of entries of the batch whose elements are examples.
        process_group: Processes that climb together, over all of which m counts examples; ``None`` for climbs
            of each process by itself, in groups of its own examples.
        engine: ``"auto"``, ``"loop"`` or ``"batched"``: whether groups run one after the other or at once.
        max_memory: Bytes above the weights that running groups at once may take.
        diagnostics: Whether ``last_diagnostics`` is filled after each call.
        capture: ``"replay"`` records steps at many groups at once and replays them, ``"compile"`` also has
            ``torch.compile`` make something faster of them, and ``"off"`` runs each as it is. A replay does
            not run the loss: ``docs/captured_steps.md`` says what that means, and what cannot be recorded.

    Attributes:
        module: The module, if one was given.
        most_examples: Of the batches so far, the largest number of examples.
        steps_done: Number of steps begun so far. A call begins one if it finds no gradient: ``.grad`` is
            ``None`` or zero everywhere; otherwise it accumulates to the step before.
        last_diagnostics: :class:`~lowland.sam.Diagnostics` of the last call, if ``diagnostics``.

    Raises:
        TypeError: If an option is of another kind, or there is no such option; so does an assignment.
        ValueError: If it is out of its range; so does an assignment.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from lowland import SAM
        >>> model = torch.nn.Linear(3, 2)
        >>> sam = SAM(model, rho=0.1, m=16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> def loss(x, y):
        ...     return F.cross_entropy(model(x), y)
        >>> x, y = torch.randn(64, 3), torch.randint(2, (64,))
        >>> before = loss(x, y)
        >>> optimizer.zero_grad()
        >>> value = sam.backward(loss, x, y)
        >>> optimizer.step()
        >>> torch.allclose(value, before), sam.steps_done  # the loss at the unperturbed weights
        (True, 1)
    """

    module: nn.Module | None
    bn_stats: BatchNormStats
    reduction: Reduction
    engine: Engine
    capture: Capture
    _captures: Captures | None

    @understood
    def __init__(
        self,
        params: Params,
        *,
        rho: float | Schedule,
        m: int | None = None,
        ascent: Ascent | BlindAscent | None = None,
        perturb: str | Sequence[str] | None = None,
        source: AscentSource | None = None,
        combine: Combine | None = None,
        steps: int = 1,
        step_size: float = 1.0,
        l2: float = 0.0,
        bn_stats: BatchNormStats = "first",
        weight: Weight | None = None,
        reduction: Reduction = "mean",
        shared: Sequence[str] = (),
        rows: Sequence[str] = (),
        process_group: ProcessGroup | None = None,
        engine: Engine = "auto",
        max_memory: int | None = None,
        diagnostics: bool = False,
        capture: Capture = "off",
    ) -> None:
        self.module = params if isinstance(params, nn.Module) else None
        self._chosen, self._workspace = Chosen(params), Workspace()
        self.rho, self.m, self.steps, self.step_size, self.l2 = rho, m, steps, step_size, l2
        self.ascent, self.perturb, self.source, self.combine = ascent, perturb, source, combine
        self.bn_stats, self.weight, self.reduction = bn_stats, weight, reduction
        self.shared, self.rows, self.process_group = shared, rows, process_group
        self.engine, self.max_memory, self.diagnostics = engine, max_memory, diagnostics
        self.capture, self._captures = capture, None
        self.steps_done, self.most_examples = 0, 0
        self.last_diagnostics: Diagnostics | None = None
        for own in filter(None, self._chosen.radii):
            non_negative("rho", own)
        check_together(ascent or L2(), steps, combine, source)
        _check_cut(self)
        if capture != "off":
            why = reason_against(ascent or L2(), engine=engine, reduction=reduction, weight=weight)
            refuse_recording(capture, why)

    def __setattr__(self, name: str, value: Any) -> None:
        """Takes the options that there are, each if its value is one."""
        if name in OF_SAM:
            OF_SAM[name](name, value)
        elif name == "step" or (
            type(self).__module__.startswith("lowland.")
            and not (name in OWN or hasattr(SAM, name) or name[0] == "_")
        ):
            raise AttributeError(unknown(name))
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """The number of parameters, and the options that are not at their defaults."""
        return f"SAM({len(self.params)} parameters, {shown_options(self)})"

    @property
    def params(self) -> list[Tensor]:
        """The parameters, each once, in order; frozen ones included. Those of a module are looked up anew."""
        if self.module is not None:
            found = Chosen(self.module)
            if list(map(id, found.tensors)) != list(map(id, self._chosen.tensors)):
                self._choose(found, self._perturb)
        return self._chosen.tensors

    @property
    def captures(self) -> Captures | None:
        """The steps that were recorded; ``None`` with ``capture="off"``."""
        if self.capture == "off":
            return None
        if self._captures is None or self._captures.mode != self.capture:
            self._captures = Captures(self.capture)
        return self._captures

    @property
    def perturb(self) -> str | Sequence[str] | None:
        """Names, or patterns of names, of the parameters that are perturbed."""
        return self._perturb

    @perturb.setter
    def perturb(self, patterns: str | Sequence[str] | None) -> None:
        self._choose(self._chosen, patterns)

    def step(self, *_: object, **__: object) -> NoReturn:
        """Refuses to be one of an optimizer; ``steps_done`` is the number of steps."""
        raise TypeError(
            "SAM must stand beside an optimizer, which makes the steps, optimizer.step(), got sam.step(): "
            "it is none itself (lowland.SAMOptimizer is), and counts steps in sam.steps_done."
        )

    def backward(
        self,
        loss: Loss,
        *batch: Any,
        scale: Scale = 1.0,
        ascent_batch: AscentBatch = None,
        new_step: bool | None = None,
    ) -> Any:
        """Adds the m-SAM gradient to ``.grad`` and returns the mean loss at the unperturbed weights.

        Args:
            loss: Loss of the examples it is given; see :func:`~lowland.sam.sam_gradient`.
            batch: Its arguments: tensors whose first dimension is the examples, or nested dicts, lists and
                tuples of them; or one :class:`~lowland.sam.MicroBatches`, for one climb from the gradient
                accumulated over all its parts.
            scale: Factor on the gradients, as in ``(scale * loss).backward()``: a ``GradScaler``, or 1/k
                for accumulation over k calls, each of which climbs by itself.
            ascent_batch: Examples that the climb sees instead, in place of those of ``source``.
            new_step: Whether the call begins a step; by default it does if it finds no gradient.

        Returns:
            The loss, a detached scalar (with ``l2``, including it), or ``(loss, aux)`` if ``loss``
            returns an ``aux``.
        """
        result, _ = self._gradient(loss, self._call("backward", batch, scale, new_step), ascent_batch)
        return result.loss if result.aux is None else (result.loss, result.aux)

    def objective(
        self,
        loss: Loss,
        *batch: Any,
        scale: Scale = 1.0,
        ascent_batch: AscentBatch = None,
        new_step: bool | None = None,
    ) -> Any:
        """The mean loss as a tensor whose own ``backward()`` adds the m-SAM gradient to ``.grad``.

        For trainers that call ``backward`` themselves: they scale, accumulate, clip and step as ever. All
        passes have been made when this returns. ``scale`` is that of the passes only: it keeps gradients in
        float16's range and is removed again. Trainers that clear the gradients only before their own
        ``backward`` must say which calls begin a step: ``new_step``.

        Args:
            loss: As for :meth:`backward`, and so are the others but ``scale``.
            batch: Its arguments.
            scale: Factor on the gradients within the passes.
            ascent_batch: Examples that the climb sees instead.
            new_step: Whether the call begins a step.

        Returns:
            The loss, or ``(loss, aux)``, as :meth:`backward`.

        Raises:
            ValueError: With :class:`~lowland.sam.DecoupledWeighted`, which must know the scale.
        """
        call = self._call("objective", batch, scale, new_step)
        result, finish = self._gradient(loss, call, ascent_batch)
        if call.factor != 1.0:
            result.gradients[:] = [None if g is None else working(g) / call.factor for g in result.gradients]
        value = as_loss(result.loss, call.params, result.gradients, finish.reductions)
        return value if result.aux is None else (value, result.aux)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the state of the parts that have one. Options are not part of it."""
        return {"step": self.steps_done, **self._parts(self.source).state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned.

        Args:
            state: What that was.

        Raises:
            ValueError: If it is that of other parts.
        """
        self.steps_done = self._parts(self.source).load_state_dict(state)

    def _parts(self, source: AscentSource | None) -> Parts:
        return Parts(rho=self.rho, ascent=self.ascent, source=source, combine=self.combine)

    def _choose(self, chosen: Chosen, patterns: str | Sequence[str] | None) -> None:
        perturbed = None if patterns is None else chosen.matching(patterns)
        self._chosen, self._perturb, self._perturbed = chosen, patterns, perturbed

    def _call(self, way: Way, batch: tuple[Any, ...], scale: Scale, new_step: bool | None) -> Call:
        params = [p for p in self.params if is_trained(p)]
        if (
            self.source is not None
        ):  # the first call may have no batch of it to refuse; the rest is seen there
            _check_cut(self)
        begins = not has_gradient(self.module, params) if new_step is None else new_step
        step = self.steps_done if begins else max(self.steps_done - 1, 0)
        return Call(step, params, way, batch=batch, scale=scale, begins=begins)

    def _gradient(self, loss: Loss, call: Call, ascent_batch: AscentBatch) -> tuple[SAMGradient, Finish]:
        """The gradient, of which the parts are told; if something fails, there was no call."""
        source = self.source if ascent_batch is None else None
        finish = Finish(self, call, self._parts(source), self._workspace)
        alone = Alone([self], _REFUSAL, nested=False)
        try:
            with alone:
                radii = self._radii(call)
                finish.parts.begin(call)
                if source is not None and call.climbs:
                    ascent_batch = call.ascent_batch(source)
                result = sam_gradient(
                    loss,
                    self._named(call),
                    call.arguments,
                    rho=[0.0] * len(radii) if call.instead else radii,
                    ascent_batch=ascent_batch,
                    scale=call.factor,
                    module=self.module,
                    captures=self.captures,
                    then=finish,
                    **{name: getattr(self, name) for name in _HANDED_ON},
                )
                return result, finish
        except BaseException:
            finish.undo()
            alone.end()
            raise

    def _of_trained(self, call: Call, of_each: Sequence[Any]) -> list[Any]:
        """Those of the trained parameters, from one for each of all."""
        trained = set(map(id, call.params))
        return [one for p, one in zip(self._chosen.tensors, of_each, strict=True) if id(p) in trained]

    def _radii(self, call: Call) -> list[float]:
        radii = radii_at(self.rho, call.step, self._chosen.radii)
        if self._perturbed is not None:
            radii = [r if chosen else 0.0 for r, chosen in zip(radii, self._perturbed, strict=True)]
        radii = self._of_trained(call, radii)
        call.climbs = any(radii)
        return radii

    def _named(self, call: Call) -> list[Tensor] | dict[str, Tensor]:
        names = self._chosen.names
        if names is None:
            return call.params
        return dict(zip(self._of_trained(call, names), call.params, strict=True))


def _check_cut(sam: SAM) -> None:
    """Refuses options that have no form for a model in pieces, if it is."""
    if not is_cut(sam.module, sam._chosen.tensors):
        return
    from lowland.sam.sharded.options import check_parts, refuse_options

    refuse_unknown(sam.module, sam._chosen.tensors)
    check_parts(sam.ascent or L2(), sam.engine, sam.process_group)
    refuse_options(combine=sam.combine, source=sam.source, max_memory=sam.max_memory, captures=sam.captures)
