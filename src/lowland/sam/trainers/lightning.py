"""SAM in a Lightning module, with Lightning's own accumulation, clipping, precision and strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lowland.sam.perturb import weights_are_perturbed
from lowland.sam.shell import SAM

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object


class SAMTraining(_Base):
    """Trains a ``LightningModule`` with SAM: to be named before it among the bases.

    ``training_step`` is evaluated for each group at the weights and at the perturbed ones, and must return
    the loss of the batch that it is given, alone or under ``"loss"`` in a dictionary; other tensors there are
    joined over the groups. The trainer then calls ``backward`` on the result as ever. What is logged in
    perturbed passes is left out. The state of SAM goes into Lightning's checkpoints.

    Example:
        .. code-block:: python

            class SharpClassifier(SAMTraining, Classifier):
                def configure_sam(self):
                    return SAM(self, rho=0.1, m=16)
    """

    _sam: SAM | None = None

    def configure_sam(self) -> SAM:
        """The SAM to train with, called once; to be overridden."""
        raise NotImplementedError("configure_sam must return a lowland.SAM, got no such method.")

    @property
    def sam(self) -> SAM:
        """The SAM that trains this module."""
        if self._sam is None:
            self.__dict__["_sam"] = self.configure_sam()
        assert self._sam is not None
        return self._sam

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The module's own training step, as the objective of SAM."""
        parent = super().training_step

        def loss(group: Any) -> Any:
            returned = parent(group, *args, **kwargs)
            if not isinstance(returned, Mapping):
                return returned
            rest = {k: v for k, v in returned.items() if k != "loss" and isinstance(v, Tensor)}
            return returned["loss"], rest

        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        found = self.sam.objective(loss, batch, scale=1.0 if scaler is None else scaler)
        return {"loss": found[0], **found[1]} if isinstance(found, tuple) else found

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Logs as ever, at the unperturbed weights only."""
        if not weights_are_perturbed():
            super().log(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of SAM."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sam"] = self.sam.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the state of SAM, if there is one."""
        super().on_load_checkpoint(checkpoint)
        if "sam" in checkpoint:
            self.sam.load_state_dict(checkpoint["sam"])
