"""Deep networks: data, models, losses and the one training loop."""

from lowland.deep.config import TrainConfig
from lowland.deep.launch import Place, launch, load_data, run_name
from lowland.deep.processes import ProcessLost, Ranks, joined, ranks
from lowland.deep.state import TrainState
from lowland.deep.training import Control, Interrupted, Observer, summarize, train
from lowland.deep.weights import load_weights, read_states

__all__ = [
    "Control",
    "Interrupted",
    "Observer",
    "Place",
    "ProcessLost",
    "Ranks",
    "TrainConfig",
    "TrainState",
    "joined",
    "launch",
    "load_data",
    "load_weights",
    "ranks",
    "read_states",
    "run_name",
    "summarize",
    "train",
]
