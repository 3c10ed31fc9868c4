"""Loads what is to be measured: a run, a file of weights, or what a function returns, with its data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lowland.deep.checkpoint import require_config, saved_states
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import Criterion, are_logits
from lowland.deep.data import TrainingData, load_training_data, read_own_data, undivided_own_data
from lowland.deep.data.cache import checksum
from lowland.deep.data.sets import require_folder_read
from lowland.deep.fit import Needed, require_fit
from lowland.deep.functions import arguments_of, errors_told, is_function, sources_of
from lowland.deep.launch import Place, load_data, padding_for
from lowland.deep.new_network import new_network, own_network
from lowland.deep.options import OF_OWN_DATA
from lowland.deep.origin import require_same_origin, warn_of_changes
from lowland.deep.seeding import generators_kept
from lowland.deep.subject import Subject, SubjectOptions
from lowland.deep.trial import require_loss_runs, require_mask, require_untouched
from lowland.deep.trusted import require_trusted
from lowland.deep.weights import load_weights, put_weights
from lowland.errors import InputError, one_of, require_default
from lowland.runs import Run

OF_MODELS = ("model_width", "n_layers", "activation")
"""Options of a network of ours."""
OF_FILES = ("model", "model_arg", *OF_MODELS)
"""Options of the network that a file's weights are of."""


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
    _refuse(options, ("model", *OF_MODELS), source)
    _refuse_kind(options, source)
    _require_folder_read(options, source)
    data = _data(options, None)
    model = own_network(source, arguments_of("model_arg", options.model_arg), data)
    return _placed(source, model, data, options, own_model=source)


def _of_run(path: Path, options: SubjectOptions) -> Subject:
    run = Run.open(path)
    if "command" in run.config:
        raise InputError(f"{path} must be a run of lowland train, got one of {run.config['command']!r}.")
    if not run.model_path.is_file() and not run.checkpoint_path.is_file():
        raise InputError(f"{path} must have weights, but has neither model.safetensors nor a checkpoint.")
    _refuse(options, OF_FILES, "a run")
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
        _refuse(options, OF_MODELS, "a network of your own")
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
    require_untouched(arguments[:1], name)
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
