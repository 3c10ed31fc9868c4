"""Data sets, decoded once and held in memory; label noise; augmentation of whole batches."""

from lowland.deep.data.augment import Augmentation, augment, to_float
from lowland.deep.data.divided import divided_own_data, undivided_own_data
from lowland.deep.data.own import OwnData, read_own_data
from lowland.deep.data.sets import DATASETS, DataSet, augmentation
from lowland.deep.data.split import Split
from lowland.deep.data.training_data import TrainingData, load_training_data

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataSet",
    "OwnData",
    "Split",
    "TrainingData",
    "augment",
    "augmentation",
    "divided_own_data",
    "load_training_data",
    "read_own_data",
    "to_float",
    "undivided_own_data",
]
