"""Data sets, decoded once and held in memory; label noise; augmentation of whole batches."""

from lowland.deep.data.augment import Augmentation, augment, to_float
from lowland.deep.data.sets import DATASETS, DataSet, augmentation, require_folder_read
from lowland.deep.data.split import Split
from lowland.deep.data.training_data import TrainingData, load_training_data

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataSet",
    "Split",
    "TrainingData",
    "augment",
    "augmentation",
    "load_training_data",
    "require_folder_read",
    "to_float",
]
