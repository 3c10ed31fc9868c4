"""What was understood of a run's data, in a few lines."""

from __future__ import annotations

import torch
from torch import Tensor

from lowland.deep.data.augment import Augmentation
from lowland.deep.data.split import Split
from lowland.deep.data.training_data import TrainingData

_SHOWN = 12


def understood(data: TrainingData, name: str, augmentation: Augmentation | None) -> list[str]:
    """Lines that say what the data are taken for: examples, shapes, classes and their counts, the split.

    Args:
        data: The data.
        name: What they are called.
        augmentation: How training images are varied; ``None`` if they are not.
    """
    form = "" if data.own is None else f", {data.own.form}"
    lines = [f"data: {name}{form}: {_counted(data)}"]
    lines += [f"  {note}" for note in ([] if data.own is None else data.own.notes)]
    lines.append(f"  targets: {_targets(data)}")
    lines.append(f"  split: {_split(data)}")
    lines.append(f"  inputs: {_inputs(data)}")
    if data.kind == "images":
        lines.append(f"  augmentation: {_augmentation(augmentation)}")
    return lines


def _counted(data: TrainingData) -> str:
    total = sum(map(len, data.parts.values()))
    shape = "x".join(map(str, data.input_shape))
    return {
        "images": f"{total:,} images of {shape}",
        "features": f"{total:,} examples of {shape} numbers",
        "tokens": f"{total:,} sequences of up to {shape} tokens, vocabulary of {data.vocab_size:,}",
    }[data.kind]


def _targets(data: TrainingData) -> str:
    if not data.has_classes:
        values = torch.cat([part.targets.flatten() for part in data.parts.values()])
        count = "a number" if data.num_classes == 1 else f"{data.num_classes} numbers"
        return f"{count} each (regression), mean {values.mean():.4g}, standard deviation {values.std():.4g}"
    labels = torch.cat([part.clean_targets for part in data.parts.values()])
    counts = torch.bincount(labels, minlength=data.num_classes).tolist()
    names = data.classes or tuple(map(str, range(data.num_classes)))
    shown = ", ".join(f"{name}: {count:,}" for name, count in list(zip(names, counts, strict=True))[:_SHOWN])
    more = ", ..." if len(counts) > _SHOWN else ""
    flipped = int((data.train.targets != data.train.clean_targets).sum())
    noise = f"; {flipped:,} of the {len(data.train):,} training labels are flipped" if flipped else ""
    return f"{data.num_classes} classes: {shown}{more}{noise}"


def _split(data: TrainingData) -> str:
    counts = [f"{len(part):,} {name}" for name, part in data.parts.items()]
    own = {} if data.own is None else data.own.parts
    if data.own is None:
        return f"{', '.join(counts)}; validation is a tenth of the training examples, by the seed"
    origins = [
        "" if "validation" in own else "validation is a tenth, by the seed",
        "" if "test" in own else "test is a fifth, the same for every seed",
    ]
    said = ", ".join(origin for origin in origins if origin)
    return f"{', '.join(counts)}" + (f"; {said}" if said else "")


def _inputs(data: TrainingData) -> str:
    if data.kind == "tokens":
        padding = _padding(data.train)
        return f"tokens with a mask; {padding:.0%} of the training set's are padding"
    if data.scaling is not None:
        which = "channel" if data.kind == "images" else "feature"
        return f"standardized by the training set's mean and deviation of each {which}"
    pixels = (
        "pixels in [0, 1]"
        if data.train.inputs.dtype == torch.uint8
        else f"numbers {_span(data.train.inputs)}"
    )
    return f"{pixels}, not normalized"


def _padding(split: Split) -> float:
    assert split.mask is not None
    return 1.0 - split.mask.double().mean().item()


def _span(numbers: Tensor) -> str:
    return f"from {numbers.min():.4g} to {numbers.max():.4g}"


def _augmentation(augmentation: Augmentation | None) -> str:
    if augmentation is None or not (augmentation.crop or augmentation.flip):
        return "none"
    ways = {"random crops after padding by 4": augmentation.crop, "random flips": augmentation.flip}
    return ", ".join(way for way, there in ways.items() if there)
