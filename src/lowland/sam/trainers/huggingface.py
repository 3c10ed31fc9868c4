"""SAM in the ``Trainer`` of transformers, with its own accumulation, clipping, precision and devices."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowland.extras import needs
from lowland.sam.ascent import BlindAscent
from lowland.sam.containers import tensors_of
from lowland.sam.kinds import is_a
from lowland.sam.objective import Weight
from lowland.sam.options import SAMOptions
from lowland.sam.perturb import weights_are_perturbed
from lowland.sam.pieces import is_cut
from lowland.sam.private import is_in_vmap
from lowland.sam.shell import SAM
from lowland.sam.trainers.layouts import Packed, in_pairs, out_of_pairs
from lowland.sam.trainers.masks import always_built
from lowland.sam.trainers.noted import Noted
from lowland.sam.unbatchable import Unbatchable
from lowland.sam.understood import check_option

with needs("huggingface", "transformers", "accelerate"):
    import accelerate  # noqa: F401  # the trainer asks for it only when it is made
    from transformers import Trainer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_FILE = "sam.pt"

_PACKED = "packed sequences"

_PAIRED = {"DPOTrainer", "RewardTrainer"}
"""Trainers of trl whose batch is all chosen and then all rejected answers."""


def _inputs(group: Any) -> dict[str, Any]:
    """The model's arguments, of examples as SAM cuts them."""
    if _PACKED in group:
        inputs: dict[str, Any] = group[_PACKED].inputs()
        return inputs
    return out_of_pairs(group) if group.keys() == {"pairs", "each"} else dict(group)


def _labels(inputs: Mapping[str, Any]) -> Tensor | None:
    found = inputs.get("shift_labels", inputs.get("labels"))
    return found if isinstance(found, Tensor) else None


def _share(count: Any, items: Any) -> float:
    """What a batch counts in a step, also if nothing in it does: its gradients are then zero."""
    return max(float(count), 1.0) / float(items)


class _AskedFor:
    """A flag that is off, and knows whether that made a difference."""

    asked = False

    def __bool__(self) -> bool:
        self.asked = True
        return False


def _outermost(own: Callable[..., Any]) -> Callable[..., Any]:
    """The ``compute_loss`` of a subclass or of its bases, as the objective of SAM: it is what is called."""

    @functools.wraps(own)
    def compute_loss(
        self: SAMTrainerMixin,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        bound = functools.partial(own, self)
        return self._minimized(bound, model, inputs, return_outputs, num_items_in_batch)

    compute_loss.is_minimized = True  # type: ignore[attr-defined]
    return compute_loss


def _signature(cls: type) -> inspect.Signature:
    """The options of the trainer, which its installed version decides, and ours."""
    first, *rest = [c.__dict__["__init__"] for c in cls.__mro__ if "__init__" in c.__dict__]
    if first is not SAMTrainerMixin.__init__:
        return inspect.signature(functools.partial(first, None))
    options = list(inspect.signature(functools.partial(rest[0], None)).parameters.values())
    sam = inspect.signature(first).parameters["sam"]
    last = bool(options) and options[-1].kind is inspect.Parameter.VAR_KEYWORD
    options.insert(len(options) - last, sam)
    return inspect.Signature(options)


class SAMTrainerMixin(_Base):
    """Trains with SAM in any subclass of ``transformers.Trainer``: to be named before it among the bases.

    The trainer's own ``compute_loss`` is evaluated for each group at the weights and at the perturbed ones;
    accumulation, clipping, precision, evaluation and checkpoints stay the trainer's, which calls ``backward``
    on the result as ever. Groups of m examples, and accumulated micro-batches, are weighted by their number
    of labels that count (not -100): the loss is that of the trainer itself for losses that take
    ``num_items_in_batch``, and the mean over all examples for those that do not.

    An example is a row; in a packed row each of its sequences; with the ``DPOTrainer`` and ``RewardTrainer``
    of trl a pair. What a loss notes on the trainer for its logs stays at the unperturbed weights only.

    Args:
        args: What the trainer takes.
        sam: Options of :class:`~lowland.SAM`, ``{"rho": 0.05, "m": 4}``.
        kwargs: What the trainer takes, by name.

    Raises:
        TypeError: If the mixin stands behind the trainer among the bases, or an option is of another kind.
        ValueError: If an option is out of its range, or the trainer has DeepSpeed or several devices in one
            process.

    Example:
        >>> from transformers import Seq2SeqTrainer
        >>> from lowland.sam.trainers.huggingface import SAMTrainerMixin
        >>> class SAMSeq2SeqTrainer(SAMTrainerMixin, Seq2SeqTrainer):
        ...     pass  # SAMSeq2SeqTrainer(..., sam={"rho": 0.05, "m": 4})
    """

    _in_pass = False
    _none_counts = False

    def __init__(self, *args: Any, sam: SAMOptions, **kwargs: Any) -> None:
        for name, value in sam.items():
            check_option(name, value)
        capture = sam.get("capture", "off")
        if capture != "off":
            raise ValueError(
                f"capture must be 'off' in SAMTrainer, whose loss counts in Python, got {capture!r}."
            )
        super().__init__(*args, **kwargs)
        self._refuse()
        rows = (*sam.get("rows", ()), _PACKED)
        self._options: dict[str, Any] = {**sam, "rows": rows, "weight": self._weight(sam.get("weight"))}
        self._sam: SAM | None = None
        self._batches = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(SAMTrainerMixin):
            raise TypeError(
                "SAMTrainerMixin must stand before the trainer among the bases, got it behind in "
                f"{cls.__name__}."
            )
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]
        own: Any = cls.compute_loss
        if own is not SAMTrainerMixin.compute_loss and not hasattr(own, "is_minimized"):
            cls.compute_loss = _outermost(own)  # type: ignore[method-assign]

    @property
    def sam(self) -> SAM:
        """The SAM that trains the model: another one after ``model_init`` made the model anew."""
        if self.model is None:
            raise ValueError("SAMTrainer must be given a model, got none.")
        if self._sam is None or self._sam.module is not self.model:
            self._sam = SAM(self.model, **self._options)
        return self._sam

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """In training, the loss whose ``backward`` is SAM's; otherwise the trainer's own.

        A subclass may have a ``compute_loss`` of its own: it is evaluated in every pass, likewise.

        Args:
            model: The model, wrapped as the trainer wraps it.
            inputs: The batch: the model's arguments by name.
            return_outputs: Whether the outputs are wanted beside the loss; it is then the trainer's own.
            num_items_in_batch: Labels that count in all micro-batches of a step; ``None`` where the trainer
                takes the mean.

        Returns:
            The loss, or with ``return_outputs`` the loss and the outputs.
        """
        return self._minimized(super().compute_loss, model, inputs, return_outputs, num_items_in_batch)

    def _minimized(
        self, own: Callable[..., Any], model: nn.Module, inputs: Any, return_outputs: bool, items: Any
    ) -> Any:
        """The SAM objective of ``own`` in training, unless this is one of its passes."""
        if self._in_pass or return_outputs or not (model.training and torch.is_grad_enabled()):
            return own(model, inputs, return_outputs, num_items_in_batch=items)
        count, sharded = self._num_items(inputs), is_cut(self.model, self.sam.params)
        self._none_counts = bool(count == 0)
        if self._none_counts and not sharded:  # there is no gradient to climb along
            return own(model, inputs, return_outputs, num_items_in_batch=items)
        scaled = items is not None and getattr(self, "loss_is_scaled_for_ga", None) is not False
        self._batches = batch = self._batches + 1
        times_processes = _AskedFor()

        def loss(group: Any, of_batch: int = 0) -> Any:
            given = _inputs(group)
            with (
                self._passing(given, stays=of_batch == batch),
                self._as_a_whole_step(scaled),
                self._as_of_one_process(times_processes),
                always_built() if sharded else nullcontext(),
            ):
                of_group = self._num_items(given) if scaled and not self._none_counts else items
                return own(model, given, False, num_items_in_batch=of_group)

        scaler = self.accelerator.scaler
        scale: Any = 1.0 if scaler is None else scaler
        share = _share(count, items) if scaled and sharded else None
        if share is not None:  # the last pass ends in FSDP's mean over ranks: it is too late for it below
            scale = share if scaler is None else share * scaler.get_scale()
        value = self.sam.objective(loss, self._examples(inputs), batch, scale=scale)
        if times_processes.asked and items is not None:
            value = value * self.accelerator.num_processes
        if share is not None:
            return value * share
        return value * count / items if scaled else value

    @contextmanager
    def _passing(self, given: Mapping[str, Any], *, stays: bool) -> Iterator[None]:
        """A pass, which leaves what it notes on the trainer if it ``stays`` and is at the weights."""
        self._in_pass = True
        noted = Noted(self)
        try:
            yield
            if any(map(is_in_vmap, tensors_of(given))) and noted.changed():
                raise Unbatchable("numbers that the loss notes on the trainer, once for all groups")
            if not stays or (weights_are_perturbed(self.model) and not self._has_one_pass):
                noted.put_back()
        except BaseException:
            noted.put_back()
            raise
        finally:
            self._in_pass = False

    @property
    def _has_one_pass(self) -> bool:
        """Whether the only pass over an example is at perturbed weights."""
        return is_a(self.sam.ascent, BlindAscent) and self.sam.combine is None and not self.sam.diagnostics

    def _examples(self, inputs: Mapping[str, Any]) -> Any:
        """The batch as SAM is to cut it."""
        if self.sam.m is None:
            return dict(inputs)
        if any(c.__name__ in _PAIRED and c.__module__.startswith("trl.") for c in type(self).__mro__):
            return in_pairs(inputs)
        packed = Packed.of(inputs)
        return dict(inputs) if packed is None else {_PACKED: packed}

    def _weight(self, own: Weight | None) -> Weight:
        """What a group counts: its labels that count, or what the user says of the model's arguments."""

        def weight(group: Any, *_: Any) -> Any:
            inputs = _inputs(group)
            if self._none_counts:  # of a batch that is run because other ranks run theirs
                return 1
            if own is not None:
                return own(inputs)
            texts = len(group[_PACKED]) if _PACKED in group else None
            return self._num_items(inputs) if texts is None or _labels(inputs) is not None else texts

        return weight

    def _num_items(self, inputs: Mapping[str, Any]) -> Tensor | int:
        """Labels that count, as the trainer counts them; rows if there are no labels."""
        labels = _labels(inputs)
        if labels is None:
            return next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim() > 0), 1)
        shifted = getattr(self, "_loss_shifts_labels", False) and "shift_labels" not in inputs
        return ((labels[..., 1:] if shifted else labels) != -100).sum()

    @contextmanager
    def _as_a_whole_step(self, scaled: bool) -> Iterator[None]:
        """What a loss divides by the number of micro-batches it does not, where the objective is scaled."""
        steps = getattr(self, "current_gradient_accumulation_steps", 1)
        self.current_gradient_accumulation_steps = 1 if scaled else steps
        try:
            yield
        finally:
            self.current_gradient_accumulation_steps = steps

    @contextmanager
    def _as_of_one_process(self, times_processes: _AskedFor) -> Iterator[None]:
        """What a loss multiplies by the number of processes it does not: a climb is along a mean."""
        name = "average_tokens_across_devices"
        before = getattr(self.args, name, False)
        if before:
            setattr(self.args, name, times_processes)
        try:
            yield
        finally:
            if before:
                setattr(self.args, name, before)

    def _refuse(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"SAMTrainer must have one device in each process, got {self.args.n_gpu} in one: "
                "start it by accelerate launch or torchrun."
            )
        if self.is_deepspeed_enabled:
            raise ValueError("SAMTrainer must train without DeepSpeed, whose backward is its own, got it.")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.sam.state_dict(), Path(output_dir) / _FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / _FILE).is_file():
            state = torch.load(Path(checkpoint) / _FILE, map_location=self.args.device, weights_only=True)
            self.sam.load_state_dict(state)


class SAMTrainer(SAMTrainerMixin, Trainer):
    """A ``transformers.Trainer`` that trains with SAM; see :class:`SAMTrainerMixin`.

    Args:
        sam: Options of :class:`~lowland.SAM`, ``{"rho": 0.05, "m": 4}``.
        kwargs: All other arguments are those of ``Trainer``.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
        >>> from lowland.sam.trainers.huggingface import SAMTrainer
        >>> tiny = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = BertForSequenceClassification(BertConfig(**tiny, intermediate_size=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arguments = TrainingArguments(folder, use_cpu=True, report_to=[])
        ...     trainer = SAMTrainer(model, arguments, sam={"rho": 0.05, "m": 4})
        >>> trainer.sam.rho, trainer.sam.m  # for trainer.train(), with a train_dataset
        (0.05, 4)
    """
