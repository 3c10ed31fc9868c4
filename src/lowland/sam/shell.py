"""``SAM``: in place of ``loss.backward()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lowland.sam.alone import Alone
from lowland.sam.arguments import Engine
from lowland.sam.ascent import Ascent, BlindAscent, RememberingAscent
from lowland.sam.average import dense
from lowland.sam.batch import MicroBatches
from lowland.sam.buffers import BatchNormStats
from lowland.sam.choose import Chosen, Params
from lowland.sam.combine import Combine, DecoupledWeighted, ReusingCombine
from lowland.sam.containers import copied
from lowland.sam.deposit import Deposit, as_loss
from lowland.sam.diagnostics import Diagnostics
from lowland.sam.gradient import sam_gradient
from lowland.sam.kept import kept_attributes
from lowland.sam.objective import Loss, Reduction, Weight
from lowland.sam.precision import working
from lowland.sam.schedule import Schedule, radius
from lowland.sam.source import AscentSource
from lowland.sam.total import SAMGradient
from lowland.sam.workspace import Workspace


class SAM:
    r"""Sharpness-aware minimization as a gradient: ``backward`` in place of ``loss.backward()``.

    The optimizer, its schedule, clipping, accumulation and mixed precision stay the user's and work as
    without SAM. Frozen parameters (``requires_grad=False``) are neither perturbed nor trained.

    Args:
        params: A module (best: its names are then known, and its parameters are those that it has in each
            call), parameters, named parameters, or parameter groups as an optimizer takes them; a group's
            own ``rho`` is the radius of its parameters, unless a schedule is at 0, and 0 leaves them
            unperturbed.
        rho: Radius of the ascent, or a schedule: a function of the number of steps done. May be assigned at
            any time, as may the other attributes.
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
        process_group: Processes that climb together; ``None`` for climbs of each process by itself.
        engine: ``"auto"``, ``"loop"`` or ``"batched"``: whether groups run one after the other or at once.
        max_memory: Bytes that running groups at once may take.
        measure: Whether ``diagnostics`` is filled after each call.

    Attributes:
        step: Number of steps begun so far. A call begins one if it finds no gradient: ``.grad`` is ``None``
            or zero everywhere; otherwise it accumulates to the step before.
        diagnostics: :class:`~lowland.sam.Diagnostics` of the last call, if ``measure``.

    See :func:`~lowland.sam.sam_gradient`, whose shell this is, for the mathematics and the errors.

    Example:
        >>> import torch.nn.functional as F
        >>> model = torch.nn.Linear(3, 2)
        >>> sam = SAM(model, rho=0.1, m=16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> def loss(x, y):
        ...     return F.cross_entropy(model(x), y)
        >>> x, y = torch.randn(64, 3), torch.randint(2, (64,))
        >>> optimizer.zero_grad()
        >>> value = sam.backward(loss, x, y)
        >>> optimizer.step()
    """

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **options: Any) -> SAM:
            """Recognizes a call that means another library's SAM."""
            if len(args) > 1 or "base_optimizer" in options:
                raise TypeError(
                    "SAM must be given the model and stands beside the optimizer, got an optimizer to wrap: "
                    "lowland.sam.davda54.SAM takes one, SAM(params, base_optimizer, rho=...)."
                )
            return super().__new__(cls)

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
        measure: bool = False,
    ) -> None:
        if source is not None and isinstance(ascent, BlindAscent):
            raise ValueError(
                f"source must be None with {type(ascent).__name__}, which needs no gradient, "
                f"got {type(source).__name__}."
            )
        self.module = params if isinstance(params, nn.Module) else None
        self._chosen = Chosen(params)
        self._workspace = Workspace()
        self._perturb = perturb
        self._perturbed = None if perturb is None else self._chosen.matching(perturb)
        self.rho = rho
        self.m = m
        self.ascent = ascent
        self.source = source
        self.combine = combine
        self.steps = steps
        self.step_size = step_size
        self.l2 = l2
        self.bn_stats: BatchNormStats = bn_stats
        self.weight = weight
        self.reduction: Reduction = reduction
        self.shared = shared
        self.rows = rows
        self.process_group = process_group
        self.engine: Engine = engine
        self.max_memory = max_memory
        self.measure = measure
        self.step = 0
        self.diagnostics: Diagnostics | None = None

    @property
    def params(self) -> list[Tensor]:
        """The parameters, each once, in order; frozen ones included. Those of a module are looked up anew."""
        if self.module is not None:
            found = Chosen(self.module)
            if list(map(id, found.tensors)) != list(map(id, self._chosen.tensors)):
                self._chosen = found
                self._perturbed = None if self._perturb is None else found.matching(self._perturb)
        return self._chosen.tensors

    def backward(
        self,
        loss: Loss,
        *batch: Any,
        scale: float | Tensor | torch.amp.GradScaler = 1.0,
        ascent_batch: tuple[Any, ...] | MicroBatches | None = None,
        new_step: bool | None = None,
    ) -> Any:
        """Adds the m-SAM gradient to ``.grad`` and returns the mean loss at the unperturbed weights.

        Args:
            loss: Loss of the examples it is given; see :func:`~lowland.sam.sam_gradient`.
            batch: Its arguments: tensors whose first dimension is the examples, or nested dicts, lists
                and tuples of them; or one :class:`~lowland.sam.MicroBatches`, for one climb from the
                gradient accumulated over all its parts.
            scale: Factor on the gradients, as in ``(scale * loss).backward()``: a ``GradScaler``, or 1/k
                for accumulation over k calls, each of which climbs by itself.
            ascent_batch: Examples that the climb sees instead, in place of those of ``source``.
            new_step: Whether the call begins a step; by default it does if it finds no gradient.

        Returns:
            The loss, a detached scalar (with ``l2``, including it), or ``(loss, aux)`` if ``loss``
            returns an ``aux``.
        """
        trainable, rows = self._trainable()
        then = _Finish(self, trainable, deposit=True)
        result = self._gradient(then, rows, loss, batch, scale, ascent_batch, new_step)
        return result.loss if result.aux is None else (result.loss, result.aux)

    def objective(
        self,
        loss: Loss,
        *batch: Any,
        scale: float | Tensor | torch.amp.GradScaler = 1.0,
        ascent_batch: tuple[Any, ...] | MicroBatches | None = None,
        new_step: bool | None = None,
    ) -> Any:
        """The mean loss as a tensor whose own ``backward()`` adds the m-SAM gradient to ``.grad``.

        For trainers that call ``backward`` themselves: they scale, accumulate, clip and step as ever. All
        passes have been made when this returns. ``scale`` is that of the passes only: it keeps gradients in
        float16's range and is removed again. Trainers that clear the gradients only before their own
        ``backward`` must say which calls begin a step: ``new_step``.

        Returns:
            The loss, or ``(loss, aux)``, as :meth:`backward`.

        Raises:
            ValueError: With :class:`~lowland.sam.combine.DecoupledWeighted`, which must know the scale.
        """
        if isinstance(self.combine, DecoupledWeighted):
            raise ValueError("DecoupledWeighted must be used with backward, got objective.")
        trainable, rows = self._trainable()
        then = _Finish(self, trainable, deposit=False)
        result = self._gradient(then, rows, loss, batch, scale, ascent_batch, new_step)
        factor = _factor(scale, trainable)
        if factor != 1.0:
            result.gradients[:] = [None if g is None else working(g) / factor for g in result.gradients]
        value = as_loss(result.loss, trainable, result.gradients)
        return value if result.aux is None else (value, result.aux)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the state of the parts that have one. Options are not part of it."""
        parts = {name: part.state_dict() for name, part in self._parts_with_state().items()}
        return {"step": self.step, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is that of other parts.
        """
        parts = self._parts_with_state()
        if state.keys() != {"step", *parts}:
            raise ValueError(f"state must have the keys {sorted({'step', *parts})}, got {sorted(state)}.")
        self.step = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def _parts_with_state(self) -> dict[str, Any]:
        parts = {"rho": self.rho, "ascent": self.ascent, "source": self.source, "combine": self.combine}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def _trainable(self) -> tuple[list[Tensor], list[int]]:
        params = self.params
        rows = [i for i, p in enumerate(params) if _is_trained(p)]
        return [params[i] for i in rows], rows

    def _gradient(
        self,
        then: _Finish,
        rows: list[int],
        loss: Loss,
        batch: tuple[Any, ...],
        scale: float | Tensor | torch.amp.GradScaler,
        ascent_batch: tuple[Any, ...] | MicroBatches | None,
        new_step: bool | None,
    ) -> SAMGradient:
        refusal = (
            "a SAM must make one gradient at a time, got a call inside its own loss or in another thread."
        )
        alone = Alone([self], refusal, nested=False)
        try:
            with alone:
                return self._gradient_alone(then, rows, loss, batch, scale, ascent_batch, new_step)
        except BaseException:
            then.undo()
            alone.end()
            raise

    def _gradient_alone(
        self,
        then: _Finish,
        rows: list[int],
        loss: Loss,
        batch: tuple[Any, ...],
        scale: float | Tensor | torch.amp.GradScaler,
        ascent_batch: tuple[Any, ...] | MicroBatches | None,
        new_step: bool | None,
    ) -> SAMGradient:
        trainable = then.trainable
        if new_step is None:
            new_step = not _has_gradient(trainable)
        step = self.step if new_step else max(self.step - 1, 0)
        radii = self._radii(rows, step)
        if self.combine is not None and isinstance(self.combine, ReusingCombine):
            then.reuses = any(radii) and not self.combine.climbs(step)
        parts = batch[0] if len(batch) == 1 and isinstance(batch[0], MicroBatches) else batch
        source = self.source if ascent_batch is None else None
        if source is not None and any(radii) and not then.reuses:
            ascent_batch = _from_source(source, parts)
        names = self._chosen.names
        factor = _factor(scale, trainable)
        then.step, then.new_step = step, new_step
        then.unscale = 1.0 / factor if isinstance(scale, torch.amp.GradScaler) else 1.0
        then.source = source if hasattr(source, "done") else None
        if then.source is not None:
            then.batch = copied(batch, lambda t: t.detach().clone())  # a loss may change it
        return sam_gradient(
            loss,
            trainable if names is None else {names[i]: self._chosen.tensors[i] for i in rows},
            parts,
            rho=[0.0] * len(rows) if then.reuses else radii,
            m=self.m,
            ascent=self.ascent,
            steps=self.steps,
            step_size=self.step_size,
            l2=self.l2,
            ascent_batch=ascent_batch,
            combine=self.combine,
            bn_stats=self.bn_stats,
            scale=factor,
            weight=self.weight,
            reduction=self.reduction,
            shared=self.shared,
            rows=self.rows,
            module=self.module,
            process_group=self.process_group,
            engine=self.engine,
            max_memory=self.max_memory,
            workspace=self._workspace,
            diagnostics=self.measure,
            then=then,
        )

    def _radii(self, rows: list[int], step: int) -> list[float]:
        rho = radius(self.rho, step)
        off = rho == 0.0 and callable(self.rho)
        own = [rho if r is None or off else r for r in self._chosen.radii]
        chosen = self._perturbed or [True] * len(own)
        return [own[i] if chosen[i] else 0.0 for i in rows]


class _Finish:
    """What a call of SAM does with its gradient: parts take note, a step is counted, ``.grad`` is added to.

    Args:
        sam: The SAM.
        trainable: The parameters.
        deposit: Whether gradients are added to ``.grad``.
    """

    def __init__(self, sam: SAM, trainable: list[Tensor], *, deposit: bool) -> None:
        self.trainable = trainable
        self.reuses, self.new_step, self.step, self.unscale = False, True, 0, 1.0
        self.source: Any = None
        self.batch: tuple[Any, ...] = ()
        self._sam = sam
        self._deposit = Deposit(trainable) if deposit else None
        self._counted = sam.step, sam.diagnostics
        self._parts = kept_attributes([sam.rho, sam.ascent, sam.source, sam.combine])

    def __call__(self, result: SAMGradient) -> None:
        sam = self._sam
        if self.reuses:
            self._reuse(result)
        if result.climb_gradients is not None and isinstance(sam.ascent, RememberingAscent):
            sam.ascent.remember(result.climb_gradients)
        if isinstance(sam.combine, DecoupledWeighted):
            sam.combine.collect(self.trainable, self.unscale, new_step=self.new_step)
        if self.source is not None:
            self.source.done(self.batch)
        sam.step, sam.diagnostics = self.step + 1, result.diagnostics
        if self._deposit is not None:
            self._deposit.add(result.gradients)

    def done(self) -> bool:
        """Whether ``.grad`` has the gradients."""
        return self._deposit is not None and self._deposit.done()

    def undo(self) -> None:
        """Parts and counters as they were, unless all was done."""
        if not self.done():
            self._sam.step, self._sam.diagnostics = self._counted
            self._parts()

    def _reuse(self, result: SAMGradient) -> None:
        combine = self._sam.combine
        assert isinstance(combine, ReusingCombine)
        reused = combine.reuse(
            dense([None if g is None else working(g) for g in result.gradients], self.trainable)
        )
        pairs = zip(reused, result.gradients, strict=True)
        result.gradients[:] = [None if g is None else r.to(g.dtype) for r, g in pairs]


def _is_trained(p: Tensor) -> bool:
    """Whether a parameter is not frozen, and has memory. What is no tensor is refused later, by its type."""
    return not isinstance(p, Tensor) or (p.requires_grad and p.device.type != "meta")


def _from_source(source: AscentSource, batch: Any) -> Any:
    if isinstance(batch, MicroBatches):
        raise ValueError("source must be None with MicroBatches, got one.")
    return source.ascent_batch(batch)


def _has_gradient(params: list[Tensor]) -> bool:
    """Whether some ``.grad`` is neither absent nor zero."""
    found = [p.grad for p in params if isinstance(p, Tensor) and p.grad is not None]
    return any(bool((g.coalesce().values() if g.is_sparse else g).any()) for g in found)


def _factor(scale: float | Tensor | torch.amp.GradScaler, params: list[Tensor]) -> float:
    if isinstance(scale, torch.amp.GradScaler):
        # Its own scale() prepares it for step(); get_scale() alone would not.
        device = params[0].device if params else torch.device("cpu")
        return float(scale.scale(torch.ones((), device=device)))
    return float(scale)
