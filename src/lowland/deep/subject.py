"""A trained network that is to be measured, with the data to measure it on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion
from lowland.deep.data import Split, to_float
from lowland.deep.network import outputs_of
from lowland.deep.options import OwnDataOptions
from lowland.errors import InputError
from lowland.runs import Run

Kind = Literal["last", "best", "swa_last", "swa_best"]
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class SubjectOptions(OwnDataOptions):
    """What to measure, where a run does not say it itself.

    Attributes:
        kind: Which of a run's weights: at the end, chosen on validation, or their running averages.
        dataset: Data set to measure on, one of lowland train's; by default the run's own.
        model: Network of a weights file: one of lowland train's, or your own, package.module:function.
        model_arg: Arguments of your own model's function as name=value.
        model_width: Its width.
        n_layers: Its number of layers.
        activation: Its activation, if it is not relu.
        loss: What is measured: ce, mse, or your own, package.module:function of outputs and targets; by
            default a run's own, else ce of classes and mse of numbers.
        data_dir: Folder with data sets, DIR/cifar10/*.parquet and so on; else the run's, else $LOWLAND_DATA.
        trust: Packages whose functions a run may name; your own modules need no word.
        device: cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.
        dtype: Type of the weights while they are measured.
    """

    kind: Kind = "last"
    dataset: str | None = None
    model: str | None = None
    model_arg: tuple[str, ...] = ()
    model_width: int | None = None
    n_layers: int | None = None
    activation: str | None = None
    loss: str | None = None
    data_dir: Path | None = None
    trust: tuple[str, ...] = ()
    device: str = "auto"
    dtype: Precision = "float32"


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, and its data.

    Attributes:
        name: For tables.
        model: The network; its parameters require gradients.
        train: Training examples, with the labels that were trained on.
        test: Test examples; empty if there are none.
        data: The name of the data set, or where one's own are.
        criterion: How its outputs are judged.
        made_of: Hashes of what is one's own: of the examples, and of the modules of network and loss.
        kind: Which of its weights.
        run: The run that it came from.
        config: What was trained there.
    """

    name: str
    model: nn.Module
    train: Split
    test: Split
    data: str
    criterion: Criterion = CROSS_ENTROPY
    made_of: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = "last"
    run: Run | None = None
    config: TrainConfig | None = None

    def split(self, name: str) -> Split:
        """The examples of ``train`` or ``test``.

        Raises:
            InputError: If there are none.
        """
        split = self.train if name == "train" else self.test
        if len(split) == 0:
            raise InputError(f"{self.name} must have {name} examples, got none.")
        return split

    def fingerprint(self) -> str:
        """Ten hex digits that name the weights and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:10]

    def inputs(self, stored: Tensor) -> Tensor:
        """Inputs as they are stored, as the network takes them."""
        inputs = to_float(stored)
        is_number = inputs.is_floating_point()
        return inputs.to(next(self.model.parameters()).dtype) if is_number else inputs

    def outputs(self, stored: Tensor, *mask: Tensor) -> Tensor:
        """What the network makes of inputs as they are stored."""
        outputs: Tensor = outputs_of(self.model, self.inputs(stored), *mask)
        return outputs


def pick_parameters(model: nn.Module, pattern: str | None) -> dict[str, nn.Parameter]:
    """Parameters whose names match a regular expression; all that require gradients for ``None``.

    Raises:
        InputError: If the expression is none, or nothing matches it.
    """
    all_ = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if pattern is None:
        return all_
    try:
        found = {name: p for name, p in all_.items() if re.search(pattern, name)}
    except re.error as error:
        raise InputError(f"layers must be a regular expression, got {pattern!r}: {error}.") from None
    if not found:
        some = ", ".join(list(all_)[:5])
        raise InputError(f"layers must match a parameter's name ({some}, ...), got {pattern!r}.")
    return found
