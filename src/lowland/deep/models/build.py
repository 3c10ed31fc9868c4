"""Models by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from lowland.deep.models.initialization import initialize
from lowland.deep.models.layers import batch_norm, group_norm, parse_activation
from lowland.deep.models.preact import PreActResNet
from lowland.deep.models.resnet import ResNet
from lowland.deep.models.small import ConvNet, FullyConnected, LeNet, LinearModel
from lowland.deep.models.vgg import VGG16
from lowland.deep.models.wrn import WideResNet
from lowland.errors import InputError, one_of

_UNSET: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "model_width": (None, 1),
        "activation": ("relu",),
        "droprate": (0.0,),
        "n_layers": (1,),
        "scale_init": (0.0,),
    }
)
"""The options that not every model reads, with the values that mean "not asked for".

The original requires a width for every model, so 1 is one for those that have none.
"""


@dataclass(frozen=True)
class _Model:
    """How a model is made.

    Attributes:
        construct: Takes ``image_shape``, ``num_outputs`` and the options in ``reads``, by keyword.
        reads: The options that mean something to it; the others are refused.
        width: Its width if none is given; ``None`` if it has none.
        convolutional: Whether it needs images, as opposed to arrays of any shape.
        min_size: The least height and width of an image.
        outputs_of_two: Outputs for two classes: their logit difference, or a logit each where the original
            has two, so that its checkpoints fit.
        batch_norm: Whether it has batch normalization.
    """

    construct: Callable[..., nn.Module]
    reads: tuple[str, ...]
    width: int | None = None
    convolutional: bool = True
    min_size: int = 1
    outputs_of_two: int = 1
    batch_norm: bool = False


_BLOCKS = ("model_width", "activation", "droprate")
_LAYERS = ("model_width", "activation", "droprate", "n_layers")
_EIGHTEEN = (2, 2, 2, 2)
_THIRTY_FOUR = (3, 4, 6, 3)
_TINY = (1, 1, 1, 1)

_MODELS: Mapping[str, _Model] = {
    "resnet18": _Model(
        partial(PreActResNet, num_blocks=_EIGHTEEN, norm=batch_norm), _BLOCKS, 64, batch_norm=True
    ),
    "resnet18_gn": _Model(partial(PreActResNet, num_blocks=_EIGHTEEN, norm=group_norm), _BLOCKS, 64),
    "resnet_tiny": _Model(
        partial(PreActResNet, num_blocks=_TINY, norm=batch_norm), _BLOCKS, 16, batch_norm=True
    ),
    "resnet_tiny_gn": _Model(partial(PreActResNet, num_blocks=_TINY, norm=group_norm), _BLOCKS, 16),
    "resnet34": _Model(
        partial(ResNet, num_blocks=_THIRTY_FOUR), _BLOCKS, 64, outputs_of_two=2, batch_norm=True
    ),
    "resnet34_gn": _Model(partial(PreActResNet, num_blocks=_THIRTY_FOUR, norm=group_norm), _BLOCKS, 64),
    "resnet34preact": _Model(
        partial(PreActResNet, num_blocks=_THIRTY_FOUR, norm=batch_norm), _BLOCKS, 64, batch_norm=True
    ),
    "wrn28": _Model(partial(WideResNet, depth=28), _BLOCKS, 10, outputs_of_two=2, batch_norm=True),
    "vgg16": _Model(VGG16, ("model_width", "activation"), 64, min_size=32, outputs_of_two=2),
    "lenet": _Model(LeNet, ("activation",), min_size=16),
    "cnn": _Model(ConvNet, _LAYERS, 64),
    "fc": _Model(FullyConnected, _LAYERS, 512, convolutional=False),
    "linear": _Model(LinearModel, ("scale_init",), convolutional=False),
}

MODEL_NAMES: tuple[str, ...] = tuple(_MODELS)
"""The names that :func:`build_model` knows."""

DEFAULT_WIDTHS: Mapping[str, int | None] = MappingProxyType(
    {name: model.width for name, model in _MODELS.items()}
)
"""The ``model_width`` that each model has if none is given; ``None`` for a model without one."""

NORMALIZED_BY_BATCH: tuple[str, ...] = tuple(name for name, model in _MODELS.items() if model.batch_norm)
"""The names of the models with batch normalization."""


def is_convolutional(name: str) -> bool:
    """Whether the model needs images of at least some size; ``fc`` and ``linear`` take any shape.

    Args:
        name: One of :data:`MODEL_NAMES`.

    Raises:
        InputError: If no model has this name.

    Example:
        >>> from lowland.deep.models import is_convolutional
        >>> is_convolutional("resnet18"), is_convolutional("linear")
        (True, False)
    """
    return _find(name).convolutional


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    num_values: int | None = None,
    model_width: int | None = None,
    image_shape: tuple[int, ...] = (3, 32, 32),
    activation: str = "relu",
    droprate: float = 0.0,
    n_layers: int = 1,
    scale_init: float = 0.0,
) -> nn.Module:
    """A new model, initialized from PyTorch's default generator.

    It maps images of shape ``(examples, *image_shape)`` to logits of shape ``(examples, num_classes)``, or
    ``(examples, 1)`` for two classes: there the one output is the logit difference, except that
    ``resnet34``, ``wrn28`` and ``vgg16`` have two logits, as in the original code. It takes images with
    values in [0, 1] as they are; ``vgg16`` standardizes colours itself.

    Args:
        name: One of :data:`MODEL_NAMES`.
        num_classes: Number of classes, at least 2.
        num_values: In its place: the number of values to predict, each of which is an output.
        model_width: Channels of the first stage (ResNets, VGG) or of every layer (``cnn``), units of a hidden
            layer (``fc``), widening factor (``wrn28``); ``None`` means that of :data:`DEFAULT_WIDTHS`. Even
            for the models with group normalization, which have ``model_width / 2`` groups in every norm.
        image_shape: Channels, height and width of an image; of ``fc`` and ``linear`` the shape of any input.
        activation: ``"relu"``, or ``"softplusA"`` with β = ``A``, such as ``"softplus10"``. The last one of
            the pre-activation ResNets is always ReLU; the original's ``resnet34`` and ``wrn28`` ignore it,
            and ``droprate`` too.
        droprate: Probability of dropping a unit, between a block's two convolutions (ResNets) or after a
            hidden activation (``cnn``, ``fc``).
        n_layers: Number of hidden layers of ``cnn`` and ``fc``.
        scale_init: The l2 norm of the initial weight of ``linear``; 0 leaves PyTorch's default.

    Raises:
        InputError: If no model has this name, a value is out of range, the image is too small for the model,
            or an option was given that the model does not read.

    Example:
        >>> from lowland.deep.models import build_model
        >>> model = build_model("resnet18", num_classes=10)
        >>> sum(parameter.numel() for parameter in model.parameters())
        11172170
    """
    model = _find(name)
    num_outputs = _num_outputs(name, num_classes, num_values)
    _check_shape(name, image_shape)
    options: dict[str, object] = {
        "model_width": model_width,
        "activation": activation,
        "droprate": droprate,
        "n_layers": n_layers,
        "scale_init": scale_init,
    }
    _refuse_unread(name, options)
    width = model.width if model_width is None else model_width
    _check_ranges(width, droprate, n_layers, scale_init)
    options |= {"model_width": width, "activation": parse_activation(activation)}
    built = model.construct(
        image_shape=image_shape,
        num_outputs=num_outputs,
        **{option: options[option] for option in model.reads},
    )
    initialize(built)
    return built


def _find(name: str) -> _Model:
    one_of("model", name, MODEL_NAMES)
    return _MODELS[name]


def _refuse_unread(name: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if option not in _MODELS[name].reads and value not in _UNSET[option]:
            readers = ", ".join(other for other, model in _MODELS.items() if option in model.reads)
            raise InputError(
                f"{option} must stay {_UNSET[option][0]!r} for {name}, since only {readers} use it, "
                f"got {value!r}."
            )


def _num_outputs(name: str, num_classes: int | None, num_values: int | None) -> int:
    if (num_classes is None) == (num_values is None):
        raise InputError(
            f"either num_classes or num_values must be given, got num_classes={num_classes} "
            f"and num_values={num_values}."
        )
    if num_classes is None:
        assert num_values is not None
        if num_values < 1:
            raise InputError(f"num_values must be positive, got {num_values}.")
        return num_values
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, got {num_classes}.")
    return _MODELS[name].outputs_of_two if num_classes == 2 else num_classes


def _check_shape(name: str, image_shape: tuple[int, ...]) -> None:
    if not image_shape or min(image_shape) < 1:
        raise InputError(f"image_shape must be positive numbers, got {image_shape}.")
    if not _MODELS[name].convolutional:
        return
    if len(image_shape) != 3:
        shape = "x".join(map(str, image_shape))
        raise InputError(
            f"{name} needs images of channels, height and width, got inputs of shape {shape}; "
            "fc and linear take any shape."
        )
    _, height, width = image_shape
    least = _MODELS[name].min_size
    if min(height, width) < least:
        raise InputError(f"{name} needs images of at least {least}x{least}, got {height}x{width}.")


def _check_ranges(width: int | None, droprate: float, n_layers: int, scale_init: float) -> None:
    if width is not None and width < 1:
        raise InputError(f"model_width must be positive, got {width}.")
    if not 0 <= droprate < 1:
        raise InputError(f"droprate must be at least 0 and less than 1, got {droprate}.")
    if n_layers < 1:
        raise InputError(f"n_layers must be positive, got {n_layers}.")
    if not 0 <= scale_init < math.inf:
        raise InputError(f"scale_init must be non-negative and finite, got {scale_init}.")
