"""SAM in a Lightning module, with Lightning's own accumulation, clipping, precision and strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowland.extras import needs
from lowland.sam.batch import batch_size
from lowland.sam.perturb import weights_are_perturbed
from lowland.sam.shell import SAM

with needs("lightning", "lightning", "torchmetrics"):
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
    from torchmetrics import Metric

_Logged = dict[str, tuple[Tensor, tuple[Any, ...], dict[str, Any]]]

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object


class SAMTraining(_Base):
    """Trains a ``LightningModule`` with SAM: to be named before it among the bases.

    ``training_step`` is evaluated for each group at the weights and at the perturbed ones, and must return
    the mean loss of the batch that it is given, alone or under ``"loss"`` in a dictionary; other tensors
    there are joined over the groups. The trainer then calls ``backward`` on the result as ever. Tensors that
    are logged are logged once, as their mean over the examples of all groups; what is logged in perturbed
    passes is left out, and metrics do not see them. The state of SAM goes into Lightning's checkpoints.

    Example:
        >>> import lightning.pytorch as pl
        >>> import torch
        >>> from lowland import SAM
        >>> from lowland.sam.trainers.lightning import SAMTraining
        >>> class Classifier(pl.LightningModule):  # as it was without SAM
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(3, 2)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return torch.nn.functional.cross_entropy(self.net(x), y)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> class SharpClassifier(SAMTraining, Classifier):
        ...     def configure_sam(self):
        ...         return SAM(self, rho=0.1, m=16)
        >>> SharpClassifier().sam  # for pl.Trainer().fit(SharpClassifier(), loader)
        SAM(2 parameters, rho=0.1, m=16)
    """

    _sam: SAM | None = None
    _sam_state: dict[str, Any] | None = None
    _sam_global_step: int | None = None
    _sam_logged: _Logged | None = None

    def configure_sam(self) -> SAM:
        """The SAM to train with, called once, when training begins; to be overridden."""
        raise NotImplementedError("configure_sam must return a lowland.SAM, got no such method.")

    @property
    def sam(self) -> SAM:
        """The SAM that trains this module."""
        if self._sam is None:
            sam = self.configure_sam()
            if self._sam_state is not None:
                sam.load_state_dict(self._sam_state)
            self.__dict__["_sam"] = sam
        assert self._sam is not None
        return self._sam

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The module's own training step, as the objective of SAM.

        Args:
            batch: The batch, which is cut into groups.
            args: What the trainer hands on beside it.
            kwargs: Likewise, by name: the ``batch_idx``, which a step without one is not given.

        Returns:
            The mean loss, or a dictionary with it, as the module's own returns.
        """
        parent = super().training_step
        if not is_param_in_hook_signature(parent, "batch_idx", min_args=2):
            args, kwargs = (), {k: v for k, v in kwargs.items() if k != "batch_idx"}

        def loss(group: Any) -> Any:
            logged: _Logged = {}
            self.__dict__["_sam_logged"] = logged
            try:
                with _metrics_kept(self):
                    returned = parent(group, *args, **kwargs)
            finally:
                self.__dict__["_sam_logged"] = None
            if not isinstance(returned, Mapping):
                returned = {"loss": returned}
            rest = {k: v for k, v in returned.items() if k != "loss" and isinstance(v, Tensor)}
            values = {name: value for name, (value, *_) in logged.items()}
            calls.update({name: call for name, (_, *call) in logged.items()})
            if values:
                values[_SIZE] = torch.tensor(float(batch_size([group]) or 1), device="cpu")
            return returned["loss"], (rest, values)

        calls: dict[str, Any] = {}
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        # Lightning clears the gradients after this, so that they do not tell where a step begins.
        begins = self.trainer.global_step != self._sam_global_step
        value, (rest, logged) = self.sam.objective(
            loss, batch, scale=1.0 if scaler is None else scaler, new_step=begins
        )
        self.__dict__["_sam_global_step"] = self.trainer.global_step
        for name, (positional, named) in calls.items():
            mean = (logged[name] * logged[_SIZE].to(logged[name])).sum() / logged[_SIZE].sum()
            self.log(name, mean, *positional, **named)
        return {"loss": value, **rest} if rest else value

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Logs as ever, at the unperturbed weights only.

        Args:
            name: Name of the value.
            value: The value.
            args: What ``LightningModule.log`` takes besides.
            kwargs: Likewise, by name.
        """
        if weights_are_perturbed(self):
            return
        if self._sam_logged is not None and isinstance(value, Tensor) and value.numel() == 1:
            self._sam_logged[name] = value.detach().reshape(()), args, kwargs
        else:
            super().log(name, value, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of SAM, if it has trained.

        Args:
            checkpoint: What is written.
        """
        super().on_save_checkpoint(checkpoint)
        if self._sam is not None:
            checkpoint["sam"] = self._sam.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the state of SAM, if there is one.

        Args:
            checkpoint: What is read.
        """
        super().on_load_checkpoint(checkpoint)
        self.__dict__["_sam_state"] = checkpoint.get("sam")
        self.__dict__["_sam"] = None


_SIZE = "number of examples"

_METRIC_NAMES = ("_update_count", "_computed", "_forward_cache")


@contextmanager
def _metrics_kept(module: nn.Module) -> Iterator[None]:
    """At perturbed weights, the states of metrics are put back at the end of the block."""
    metrics = [m for m in module.modules() if isinstance(m, Metric)] if weights_are_perturbed(module) else []
    saved = [{name: _copied(getattr(m, name)) for name in (*m._defaults, *_METRIC_NAMES)} for m in metrics]
    try:
        yield
    finally:
        for metric, state in zip(metrics, saved, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    return list(state) if isinstance(state, list) else state
