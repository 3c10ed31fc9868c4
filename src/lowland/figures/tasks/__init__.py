"""What figures are made of: runs that are carried out once, kept by the hash of their config, and shared."""

from lowland.figures.tasks.between import Between
from lowland.figures.tasks.carried import carried_out, in_levels, unfinished
from lowland.figures.tasks.cost import weights_of
from lowland.figures.tasks.engines import Engine, Failures, Here, Processes, Watch
from lowland.figures.tasks.measured import Measured
from lowland.figures.tasks.simulation import Simulation
from lowland.figures.tasks.task import How, Store, Task
from lowland.figures.tasks.training import Training

__all__ = [
    "Between",
    "Engine",
    "Failures",
    "Here",
    "How",
    "Measured",
    "Processes",
    "Simulation",
    "Store",
    "Task",
    "Training",
    "Watch",
    "carried_out",
    "in_levels",
    "unfinished",
    "weights_of",
]
