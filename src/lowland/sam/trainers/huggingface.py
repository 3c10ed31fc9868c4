"""SAM in the ``Trainer`` of transformers, with its own accumulation, clipping, precision and devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland.extras import needs
from lowland.sam.options import SAMOptions
from lowland.sam.shell import SAM
from lowland.sam.understood import check_option

with needs("huggingface", "transformers", "accelerate"):
    import accelerate  # noqa: F401  # the trainer asks for it only when it is made
    from transformers import Trainer

_FILE = "sam.pt"


def _with_sam(init: Callable[..., None]) -> inspect.Signature:
    """The options of ``Trainer``, which the installed version of transformers decides, and ours."""
    of_trainer = inspect.signature(Trainer.__init__)
    sam = inspect.signature(init).parameters["sam"]
    return of_trainer.replace(parameters=[*of_trainer.parameters.values(), sam])


class SAMTrainer(Trainer):
    """A ``transformers.Trainer`` that trains with SAM.

    Groups of m examples, and accumulated micro-batches, are weighted by their number of labels that count
    (not -100): the loss is that of the trainer itself for models that take ``num_items_in_batch``, and the
    mean over all examples for those that do not.

    Args:
        sam: Options of :class:`~lowland.SAM`, ``{"rho": 0.05, "m": 4}``. All other arguments are those of
            ``Trainer``.

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

    def __init__(self, *args: Any, sam: SAMOptions, **kwargs: Any) -> None:
        for name, value in sam.items():
            check_option(name, value)
        super().__init__(*args, **kwargs)
        self._options: dict[str, Any] = {"weight": _num_labels, **sam}
        self._sam: SAM | None = None

    __init__.__signature__ = _with_sam(__init__)  # type: ignore[attr-defined]

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

        Args:
            model: The model, wrapped as the trainer wraps it.
            inputs: The batch: the model's arguments by name.
            return_outputs: Whether the outputs are wanted beside the loss; it is then the trainer's own.
            num_items_in_batch: Labels that count in all micro-batches of a step; ``None`` where the trainer
                takes the mean.

        Returns:
            The loss, or with ``return_outputs`` the loss and the outputs.
        """
        parent = super().compute_loss
        if not model.training or return_outputs:
            return parent(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

        def loss(group: Mapping[str, Any]) -> Any:
            items = None if num_items_in_batch is None else _num_labels(group)
            return parent(model, dict(group), num_items_in_batch=items)

        scaler = self.accelerator.scaler
        value = self.sam.objective(loss, dict(inputs), scale=1.0 if scaler is None else scaler)
        return value if num_items_in_batch is None else value * (_num_labels(inputs) / num_items_in_batch)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.sam.state_dict(), Path(output_dir) / _FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / _FILE).is_file():
            state = torch.load(Path(checkpoint) / _FILE, map_location=self.args.device, weights_only=True)
            self.sam.load_state_dict(state)


def _num_labels(inputs: Mapping[str, Any]) -> Tensor | int:
    """Labels that count; examples if there are no labels."""
    labels = inputs.get("labels")
    if isinstance(labels, Tensor):
        return (labels != -100).sum()
    return int(next(v for v in inputs.values() if isinstance(v, Tensor)).shape[0])
