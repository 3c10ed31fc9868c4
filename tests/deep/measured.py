"""A trained run for tests of what is measured."""

from pathlib import Path

import torch

from lowland.deep import Control, Place, TrainConfig, launch

SMALL = {"model": "fc", "model_width": 8, "epochs": 1, "batch_size": 64}


def trained(path: Path, **options: object) -> Path:
    """A finished run of a tiny network in ``path``."""
    launch(TrainConfig(**{**SMALL, **options}), path, Place("cpu", threads=1), Control())
    return path


def same(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether parameters and buffers are what they were."""
    return all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
