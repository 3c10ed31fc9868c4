"""Somebody's own data as training, validation and test examples."""

from __future__ import annotations

import torch

from lowland.deep.data.own import OwnData
from lowland.deep.data.split import Split, divide
from lowland.deep.data.training_data import TrainingData, with_symmetric_noise
from lowland.deep.seeding import derive_seed
from lowland.errors import InputError

_TEST_SHARE = 0.2


def divided_own_data(
    own: OwnData, *, seed: int = 0, frac_train: float = 1.0, p_label_noise: float = 0.0
) -> TrainingData:
    """The parts of somebody's own data, as a run is trained on them.

    Where they have no test part, a fifth of the training examples is one, the same for every seed; where they
    have no validation part, it is a tenth of what is left, which depends on ``seed`` alone.

    Args:
        own: The data.
        seed: Decides the split and the label noise.
        frac_train: Share of the training examples that is used, after the others are taken.
        p_label_noise: Share of the training and validation labels that is flipped once, to any other class.

    Raises:
        InputError: If too little is left, or there are no labels that could be flipped.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from lowland.deep.data import divided_own_data, read_own_data
        >>> from lowland.deep.options import OwnDataOptions
        >>> x, y = np.arange(300.0).reshape(100, 3), np.arange(100) % 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/points.npz", x=x, y=y)
        ...     own = read_own_data(OwnDataOptions(data=f"{folder}/points.npz"))
        >>> data = divided_own_data(own)
        >>> len(data.train), len(data.validation), len(data.test)
        (72, 8, 20)
    """
    if p_label_noise and not own.classes:
        raise InputError(f"p_label_noise must be left out for targets that are numbers, got {p_label_noise}.")
    parts = _with_test_part({name: _split_of(own, name) for name in own.parts})
    whole = parts["train"]
    share = 0.0 if "validation" in parts else None
    kept, held_out = divide(len(whole), seed=seed, frac_train=frac_train, share=share)
    parts = {"validation": whole.select(held_out)} | parts | {"train": whole.select(kept)}
    for name, part in parts.items():
        if not len(part):
            raise InputError(
                f"{own.name} must have enough examples for a {name} part, got {len(own.parts['train'])}."
            )
    for name in ("train", "validation"):
        noise = derive_seed(seed, "label noise", name)
        parts[name] = with_symmetric_noise(
            parts[name], p_label_noise, num_classes=len(own.classes), seed=noise
        )
    # The permutation of the split has mixed the training part.
    return _data_of(own, parts | {name: _mixed(parts[name], name) for name in ("validation", "test")})


def undivided_own_data(own: OwnData) -> TrainingData:
    """The parts that somebody's own data have, to be measured on; the others are empty.

    Each is in an order that is drawn from a fixed seed, so that its first examples are a sample of it:
    folders and files are often sorted by class.

    Args:
        own: The data.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from lowland.deep.data import read_own_data, undivided_own_data
        >>> from lowland.deep.options import OwnDataOptions
        >>> x, y = np.arange(300.0).reshape(100, 3), np.arange(100) % 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/points.npz", x=x, y=y)
        ...     own = read_own_data(OwnDataOptions(data=f"{folder}/points.npz"))
        >>> data = undivided_own_data(own)
        >>> len(data.train), len(data.validation), len(data.test)
        (100, 0, 0)
    """
    parts = {name: _mixed(_split_of(own, name), name) for name in own.parts}
    return _data_of(own, {"validation": parts["train"].head(0), "test": parts["train"].head(0)} | parts)


def _with_test_part(parts: dict[str, Split]) -> dict[str, Split]:
    if "test" in parts:
        return parts
    whole = parts["train"]
    generator = torch.Generator().manual_seed(derive_seed(0, "test split"))
    order = torch.randperm(len(whole), generator=generator)
    count = round(_TEST_SHARE * len(whole))
    test, train = (whole.select(rows.sort().values) for rows in (order[:count], order[count:]))
    return parts | {"train": train, "test": test}


def _mixed(part: Split, name: str) -> Split:
    generator = torch.Generator().manual_seed(derive_seed(0, "order", name))
    return part.select(torch.randperm(len(part), generator=generator))


def _data_of(own: OwnData, parts: dict[str, Split]) -> TrainingData:
    train = parts["train"]
    tokens = own.parts.values() if train.mask is not None else ()
    values = 1 if train.targets.dim() == 1 else train.targets.shape[1]
    return TrainingData(
        train,
        parts["validation"],
        parts["test"],
        num_classes=len(own.classes) or values,
        input_shape=tuple(train.inputs.shape[1:]),
        kind="tokens" if tokens else "images" if train.inputs.dim() == 4 else "features",
        classes=own.classes,
        vocab_size=1 + max((int(examples.inputs.max()) for examples in tokens), default=-1),
        own=own,
    )


def _split_of(own: OwnData, part: str) -> Split:
    examples = own.parts[part]
    rows = torch.arange(len(examples))
    return Split(examples.inputs, examples.targets, examples.targets, rows, examples.mask)
