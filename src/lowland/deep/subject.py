"""Trained networks that are to be measured, with the data to measure them on."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowland.deep.checkpoint import require_config, saved_states
from lowland.deep.config import TrainConfig
from lowland.deep.data import Split, TrainingData, load_training_data, require_folder_read, to_float
from lowland.deep.fit import require_fit
from lowland.deep.launch import IMAGE_SIZE, Place, load_data
from lowland.deep.models import is_convolutional
from lowland.deep.state import new_network
from lowland.deep.tensors import read_tensors
from lowland.deep.weights import load_weights, put_weights
from lowland.errors import InputError
from lowland.runs import Run, read_arrays

Kind = Literal["last", "best", "swa_last", "swa_best"]
Precision = Literal["float32", "float64"]
_OF_MODELS = ("model", "model_width", "n_layers", "activation")
_OF_FILES = ("builder", *_OF_MODELS)


_MOST_CLASSES = 65_536
_PIXELS = {torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16}
_CLASSES = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool}


@dataclass(frozen=True)
class SubjectOptions:
    """What to measure, where a run does not say it itself.

    Attributes:
        kind: Which of a run's weights: at the end, chosen on validation, or their running averages.
        builder: package.module:function that makes the network of a weights file.
        dataset: Data set to measure on, one of lowland train's; by default the run's own.
        model: Network of a weights file, one of lowland train's.
        model_width: Its width.
        n_layers: Its number of layers.
        activation: Its activation, if it is not relu.
        data: Your own data: a .safetensors or .npz file with x and y, and perhaps x_test and y_test.
        data_dir: Folder with data sets, DIR/cifar10/*.parquet and so on; else the run's, else $LOWLAND_DATA.
        device: cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.
        dtype: Type of the weights while they are measured.
    """

    kind: Kind = "last"
    builder: str | None = None
    dataset: str | None = None
    model: str | None = None
    model_width: int | None = None
    n_layers: int | None = None
    activation: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
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
        data: The name of the data set, or the file.
        kind: Which of its weights.
        run: The run that it came from.
        config: What was trained there.
    """

    name: str
    model: nn.Module
    train: Split
    test: Split
    data: str
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

    def inputs(self, images: Tensor) -> Tensor:
        """Images as they are stored, as the network takes them."""
        return to_float(images).to(next(self.model.parameters()).dtype)

    def outputs(self, images: Tensor) -> Tensor:
        """What the network makes of images as they are stored."""
        outputs: Tensor = self.model(self.inputs(images))
        return outputs


def load_subject(source: str, options: SubjectOptions) -> Subject:
    """A network and its data.

    Args:
        source: A run directory of ``lowland train`` (of one that has not ended, the weights of its
            checkpoint), a file of weights (ours, or a ``.pth`` of the original
            code, read without running anything in it), or ``package.module:function``, which is called
            without arguments and returns a :class:`torch.nn.Module` with its weights.
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
    _refuse(options, _OF_FILES, source)
    _refuse_kind(options, source)
    _require_folder_read(options, source)
    return _placed(source, built_by(source), _data(options, None), options)


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


def built_by(builder: str) -> nn.Module:
    """The network that ``package.module:function`` returns; the current folder is searched too.

    Raises:
        InputError: If there is no such function, or it returns something else.
    """
    module_name, _, function = builder.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(f"{builder} must name a module that can be imported, got: {error}.") from None
    make = getattr(module, function, None)
    if not callable(make):
        raise InputError(f"{builder} must name a function, but {module_name} has no {function!r}.")
    _require_no_arguments(make, builder)
    found = make()
    if not isinstance(found, nn.Module):
        raise InputError(f"{builder} must return a torch.nn.Module, got {type(found).__name__}.")
    if next(found.parameters(), None) is None:
        raise InputError(f"{builder} must return a network with parameters, got none.")
    return found


def _require_no_arguments(make: Callable[..., Any], builder: str) -> None:
    try:
        signature = inspect.signature(make)
    except ValueError:  # some functions of C say nothing of theirs
        return
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(f"{builder} must be a function without arguments: {error}.") from None


def _of_run(path: Path, options: SubjectOptions) -> Subject:
    run = Run.open(path)
    if "command" in run.config:
        raise InputError(f"{path} must be a run of lowland train, got one of {run.config['command']!r}.")
    if not run.model_path.is_file() and not run.checkpoint_path.is_file():
        raise InputError(f"{path} must have weights, but has neither model.safetensors nor a checkpoint.")
    _refuse(options, _OF_FILES, "a run")
    config = TrainConfig.from_dict(run.config)
    _require_folder_read(options, path.name, config.dataset)
    own = load_data(config, options.data_dir or Place.of(run).data_dir)
    model = _built(config, own)
    if run.model_path.is_file():
        load_weights(model, path, kind=options.kind)
    else:
        require_config(run.checkpoint_path, config)
        put_weights(model, saved_states(run.checkpoint_path), run.checkpoint_path, kind=options.kind)
    given = options.data is not None or options.dataset not in (None, config.dataset)
    data = _data(options, config.model) if given else own
    return _placed(path.name, model, data, options, run, config, own.image_shape)


def _of_file(path: Path, options: SubjectOptions) -> Subject:
    _require_folder_read(options, path.name)
    if options.builder is not None:
        _refuse(options, _OF_MODELS, "a builder")
        model, data = built_by(options.builder), _data(options, None)
    else:
        if options.model is None:
            raise InputError(f"{path} is a file of weights, which needs --model or --builder, got neither.")
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
    return _placed(path.name, model, data, options)


def _built(config: TrainConfig, data: TrainingData) -> nn.Module:
    with torch.random.fork_rng():
        return new_network(config, data)


def _data(options: SubjectOptions, model: str | None) -> TrainingData:
    if options.data is not None:
        if options.dataset is not None:
            raise InputError(
                f"either data or dataset may be given, got {options.data} and {options.dataset}."
            )
        return _own_data(options.data)
    if options.dataset is None:
        raise InputError("what is not a run needs --dataset or --data to be measured on, got neither.")
    pad_to = IMAGE_SIZE if model is not None and is_convolutional(model) else None
    return load_training_data(options.dataset, pad_to=pad_to, data_dir=options.data_dir)


def _own_data(path: Path) -> TrainingData:
    tensors = _tensors(path)
    parts: list[Split] = []
    for x, y in (("x", "y"), ("x_test", "y_test")):
        if x not in tensors and x == "x_test":
            parts.append(_empty(parts[0]))
            continue
        for name in (x, y):
            if name not in tensors:
                raise InputError(f"{path} must hold {name}, it holds {', '.join(sorted(tensors))}.")
        parts.append(_checked(tensors[x], tensors[y], path, y))
    if parts[1].images.shape[1:] != parts[0].images.shape[1:]:
        shapes = " and ".join(str(tuple(part.images.shape[1:])) for part in parts)
        raise InputError(f"{path} must hold images x and x_test of one shape, got {shapes}.")
    labels = torch.cat([part.labels for part in parts])
    _, channels, height, width = parts[0].images.shape
    classes = int(labels.max()) + 1
    return TrainingData(parts[0], _empty(parts[0]), parts[1], classes, (channels, height, width))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            return {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
        if path.is_file():
            return read_tensors(path)[0]
    except FileNotFoundError:
        pass
    except TypeError as error:  # an array of text, say
        raise InputError(f"{path} must hold numbers only: {str(error).rstrip('.')}.") from None
    raise InputError(f"data must be a .safetensors or .npz file, but there is no {path}.")


def _checked(x: Tensor, y: Tensor, path: Path, name: str) -> Split:
    if x.dim() != 4 or x.dtype not in _PIXELS or y.dim() != 1 or y.dtype not in _CLASSES or len(x) != len(y):
        raise InputError(
            f"{path} must hold images (n, channels, height, width) and {name}, a class number from 0 each, "
            f"got shapes {tuple(x.shape)} of {x.dtype} and {tuple(y.shape)} of {y.dtype}."
        )
    if x.numel() == 0 or int(y.min()) < 0 or int(y.max()) >= _MOST_CLASSES:
        raise InputError(
            f"{path} must hold at least one image, and class numbers {name} from 0 to {_MOST_CLASSES - 1}, "
            f"got {tuple(x.shape)} and {y.tolist()[:3]}."
        )
    labels = y.long()
    return Split(x if x.dtype == torch.uint8 else x.float(), labels, labels, torch.arange(len(labels)))


def _empty(like: Split) -> Split:
    return like.head(0)


def _placed(
    name: str,
    model: nn.Module,
    data: TrainingData,
    options: SubjectOptions,
    run: Run | None = None,
    config: TrainConfig | None = None,
    trained_on: tuple[int, int, int] | None = None,
) -> Subject:
    device = Place(options.device).torch_device()
    model = model.to(device, getattr(torch, options.dtype)).eval().requires_grad_()
    train, test = data.train.to(device), data.test.to(device)
    of_run = "" if config is None else config.dataset
    named = str(options.data) if options.data is not None else options.dataset or of_run
    subject = Subject(name, model, train, test, named, options.kind, run, config)
    classes = max(int(split.labels.max()) for split in (train, test) if len(split) > 0) + 1
    image = subject.inputs(train.images[:1])
    require_fit(model, image, classes, network=name, data=named, trained_on=trained_on)
    return subject


def _refuse(options: SubjectOptions, names: tuple[str, ...], source: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None:
            raise InputError(f"{name} must be left out for {source}, which says it itself, got {value}.")


def _require_folder_read(options: SubjectOptions, of: str, *own: str) -> None:
    """Refuses ``data_dir`` for a network that has nothing to read from it."""
    asked = [] if options.dataset is None else [options.dataset]
    if asked or own or options.data is not None:
        require_folder_read(options.data_dir, [*own, *asked], of)


def _refuse_kind(options: SubjectOptions, source: str) -> None:
    if options.kind != "last":
        raise InputError(f"kind must be left out for {source}, which has its weights, got {options.kind}.")
