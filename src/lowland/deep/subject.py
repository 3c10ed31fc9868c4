"""Trained networks that are to be measured, with the data to measure them on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lowland.deep.checkpoint import require_config, saved_states
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion, are_logits
from lowland.deep.data import (
    Split,
    TrainingData,
    load_training_data,
    read_own_data,
    require_folder_read,
    to_float,
    undivided_own_data,
)
from lowland.deep.data.cache import checksum
from lowland.deep.fit import Needed, require_fit
from lowland.deep.functions import arguments_of, errors_told, is_function, sources_of
from lowland.deep.launch import Place, load_data, padding_for
from lowland.deep.network import outputs_of
from lowland.deep.new_network import new_network, own_network
from lowland.deep.options import OF_OWN_DATA, OwnDataOptions
from lowland.deep.origin import require_same_origin, warn_of_changes
from lowland.deep.seeding import generators_kept
from lowland.deep.trial import require_loss_runs, require_mask
from lowland.deep.trusted import require_trusted
from lowland.deep.weights import load_weights, put_weights
from lowland.errors import InputError, one_of, require_default
from lowland.runs import Run

Kind = Literal["last", "best", "swa_last", "swa_best"]
Precision = Literal["float32", "float64"]
_OF_MODELS = ("model_width", "n_layers", "activation")
_OF_FILES = ("model", "model_arg", *_OF_MODELS)


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


def load_subject(source: str, options: SubjectOptions) -> Subject:
    """A network and its data.

    Args:
        source: A run directory of ``lowland train`` (of one that has not ended, the weights of its
            checkpoint), a file of weights (ours, or a ``.pth`` of the original
            code, read without running anything in it), or ``package.module:function``, which returns a
            :class:`torch.nn.Module` with its weights; see :func:`~lowland.deep.new_network.own_network`.
        options: What the source does not say.

    Raises:
        InputError: If there is no such source, something that it needs is not given, or something is given
            that it does not need.
    """
    path = Path(source)
    if path.is_dir():
        return _of_run(path, options)
    if path.is_file():
        return _of_file(path, options)
    if ":" not in source:
        raise InputError(
            f"a run directory, a file of weights or package.module:function is needed, got {source!r}."
        )
    _refuse(options, ("model", *_OF_MODELS), source)
    _refuse_kind(options, source)
    _require_folder_read(options, source)
    data = _data(options, None)
    model = own_network(source, arguments_of("model_arg", options.model_arg), data)
    return _placed(source, model, data, options, own_model=source)


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


def _of_run(path: Path, options: SubjectOptions) -> Subject:
    run = Run.open(path)
    if "command" in run.config:
        raise InputError(f"{path} must be a run of lowland train, got one of {run.config['command']!r}.")
    if not run.model_path.is_file() and not run.checkpoint_path.is_file():
        raise InputError(f"{path} must have weights, but has neither model.safetensors nor a checkpoint.")
    _refuse(options, _OF_FILES, "a run")
    config = TrainConfig.from_dict(run.config)
    require_trusted(config, options.trust, path)
    _require_folder_read(options, path.name, *([] if config.data else [config.dataset]))
    place = Place.of(run)
    own = load_data(config, replace(place, data_dir=options.data_dir or place.data_dir))
    require_same_origin(run, own)
    warn_of_changes(run, config)
    model = _built(config, own)
    if run.model_path.is_file():
        load_weights(model, path, kind=options.kind)
    else:
        require_config(run.checkpoint_path, config)
        put_weights(model, saved_states(run.checkpoint_path), run.checkpoint_path, kind=options.kind)
    is_own_set = config.data is None and options.dataset == config.dataset
    given = options.data is not None or (options.dataset is not None and not is_own_set)
    if given:
        data = _like(own, _data(options, config.model), options)
    else:
        require_default(options, OF_OWN_DATA, "without --data, whose reading it decides")
        data = own
    return _placed(path.name, model, data, options, run, config, own, own_model=config.model)


def _like(own: TrainingData, other: TrainingData, options: SubjectOptions) -> TrainingData:
    """Other data as a network takes them that was trained on ``own``: scaled and numbered alike.

    Raises:
        InputError: If they are of another kind, or have a class or a token that it does not know.
    """
    name = options.data or options.dataset
    if (other.kind, other.has_classes) != (own.kind, own.has_classes):
        raise InputError(
            f"{name} must hold {_said(own)}, as what the network was trained on, got {_said(other)}."
        )
    if other.vocab_size > own.vocab_size:
        raise InputError(f"tokens of {name} must lie below {own.vocab_size}, got {other.vocab_size - 1}.")
    if own.classes and other.classes:
        unknown = sorted(set(other.classes) - set(own.classes))
        if unknown:
            raise InputError(
                f"classes of {name} must be among those that the network knows, {', '.join(own.classes)}, "
                f"got {unknown[0]}."
            )
        other = other.renumbered(own.classes)
    return other if own.scaling is None else other.standardized(own.scaling)


def _said(data: TrainingData) -> str:
    return f"{data.kind} with {'classes' if data.has_classes else 'numbers'}"


def _of_file(path: Path, options: SubjectOptions) -> Subject:
    _require_folder_read(options, path.name)
    if options.model is None:
        raise InputError(f"{path} is a file of weights, which needs --model, got none.")
    if is_function(options.model):
        _refuse(options, _OF_MODELS, "a network of your own")
        data = _data(options, None)
        model = own_network(options.model, arguments_of("model_arg", options.model_arg), data)
    else:
        _refuse(options, ("model_arg",), "a network of ours")
        config = TrainConfig(
            dataset=options.dataset or "digits",
            model=options.model,
            model_width=options.model_width,
            n_layers=1 if options.n_layers is None else options.n_layers,
            activation=options.activation or "relu",
        )
        data = _data(options, options.model)
        model = _built(config, data)
    load_weights(model, path, kind=options.kind)
    return _placed(path.name, model, data, options, own_model=options.model)


def _built(config: TrainConfig, data: TrainingData) -> nn.Module:
    with generators_kept():
        return new_network(config, data)


def _data(options: SubjectOptions, model: str | None) -> TrainingData:
    if options.data is not None:
        if options.dataset is not None:
            raise InputError(
                f"either data or dataset may be given, got {options.data} and {options.dataset}."
            )
        return undivided_own_data(read_own_data(options))
    require_default(options, OF_OWN_DATA, "without --data, whose reading it decides")
    if options.dataset is None:
        raise InputError("what is not a run needs --dataset or --data to be measured on, got neither.")
    pad_to = None if model is None else padding_for(model)
    return load_training_data(options.dataset, pad_to=pad_to, data_dir=options.data_dir)


def _placed(
    name: str,
    model: nn.Module,
    data: TrainingData,
    options: SubjectOptions,
    run: Run | None = None,
    config: TrainConfig | None = None,
    trained_on: TrainingData | None = None,
    *,
    own_model: str = "",
) -> Subject:
    device = Place(options.device).torch_device()
    model = model.to(device, getattr(torch, options.dtype)).eval()
    if not any(p.requires_grad for p in model.parameters()):
        model.requires_grad_()
    of_run = "" if config is None else config.data or config.dataset
    named = str(options.data) if options.data is not None else options.dataset or of_run
    criterion = _criterion(options, config, data)
    made_of = _made_of(data, {"model": own_model, "loss": criterion.name})
    train, test = data.train.to(device), data.test.to(device)
    subject = Subject(name, model, train, test, named, criterion, made_of, options.kind, run, config)
    require_mask(model, data, network=name, named=named)
    shape = None if trained_on is None else trained_on.input_shape
    has_errors = _tried(subject, data, shape, is_own=is_function(own_model))
    return replace(subject, criterion=replace(criterion, has_errors=has_errors))


def _tried(subject: Subject, data: TrainingData, shape: tuple[int, ...] | None, *, is_own: bool) -> bool:
    """Whether the network's outputs can be wrong; it and the loss are run on an example or two.

    Raises:
        InputError: If network, data and loss do not go together.
    """
    name, criterion = subject.name, subject.criterion
    needed = None if is_function(criterion.name) else _needed(data)
    few = subject.train.head(2 if needed is None else 1)
    arguments = [subject.inputs(few.inputs).clone(), *few.arguments[1:]]
    with errors_told(f"{name} must take the inputs of {subject.data}", only=is_own):
        outputs = require_fit(
            subject.model, arguments, needed, network=name, data=subject.data, trained_on=shape
        )
    if arguments[0]._version:
        raise InputError(f"{name} must leave the inputs that it is given as they are.")
    if needed is None:
        require_loss_runs(criterion, outputs, few.targets)
    return data.has_classes and (needed is not None or are_logits(outputs, len(few), data.num_classes))


def _made_of(data: TrainingData, functions: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the user's own examples, as they are measured, and of the modules of these functions."""
    found = {}
    if data.own is not None:
        parts = {"train": data.train, "test": data.test}
        tensors = {
            f"{name} {i}": tensor
            for name, part in parts.items()
            for i, tensor in enumerate((*part.arguments, part.targets))
        }
        found["data_hash"] = checksum(tensors)
    texts = [sources_of(name, option) for option, name in functions.items() if is_function(name)]
    if any(texts):
        found["code_hash"] = hashlib.sha256(repr(texts).encode()).hexdigest()
    return found


def _needed(data: TrainingData) -> Needed:
    """What outputs must be for the targets that are there."""
    if not data.has_classes:
        return Needed(values=data.num_classes)
    there = [part for part in (data.train, data.test) if len(part)]
    return Needed(classes=max(int(part.targets.max()) for part in there) + 1)


def _criterion(options: SubjectOptions, config: TrainConfig | None, data: TrainingData) -> Criterion:
    """What is measured: as was asked for, as in the run, or as is usual for such targets."""
    of_run = None if config is None else Criterion.of(config).name
    name = options.loss or of_run or ("ce" if data.has_classes else "mse")
    if not is_function(name):
        one_of("loss", name, ("ce", "mse"), more="your own as package.module:function")
        if (name == "ce") != data.has_classes:
            kind = "classes" if data.has_classes else "numbers"
            raise InputError(f"loss {name} must be left out for targets that are {kind}.")
    return Criterion.named(name)


def _refuse(options: SubjectOptions, names: tuple[str, ...], source: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value != ():
            raise InputError(f"{name} must be left out for {source}, which says it itself, got {value}.")


def _require_folder_read(options: SubjectOptions, of: str, *own: str) -> None:
    """Refuses ``data_dir`` for a network that has nothing to read from it."""
    asked = [] if options.dataset is None else [options.dataset]
    if asked or own or options.data is not None:
        require_folder_read(options.data_dir, [*own, *asked], of)


def _refuse_kind(options: SubjectOptions, source: str) -> None:
    if options.kind != "last":
        raise InputError(f"kind must be left out for {source}, which has its weights, got {options.kind}.")
