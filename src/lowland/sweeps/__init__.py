"""Many runs: carried out once, here, in processes or on Ray, kept by the hash of their config, and shared."""

from lowland.sweeps.between import Between
from lowland.sweeps.carried import carried_out, in_levels, unfinished
from lowland.sweeps.engine import Engine, Failures, Watch
from lowland.sweeps.grid import RADII, Grid, grid
from lowland.sweeps.here import Here
from lowland.sweeps.measured import Measured
from lowland.sweeps.processes import Processes
from lowland.sweeps.radii import Point, mean_and_deviation, points
from lowland.sweeps.simulation import Simulation
from lowland.sweeps.study import METRICS, At, Study
from lowland.sweeps.task import How, Store, Task
from lowland.sweeps.training import Training
from lowland.sweeps.work import Work

__all__ = [
    "METRICS",
    "RADII",
    "At",
    "Between",
    "Engine",
    "Failures",
    "Grid",
    "Here",
    "How",
    "Measured",
    "Point",
    "Processes",
    "Simulation",
    "Store",
    "Study",
    "Task",
    "Training",
    "Watch",
    "Work",
    "carried_out",
    "grid",
    "in_levels",
    "mean_and_deviation",
    "points",
    "unfinished",
]
