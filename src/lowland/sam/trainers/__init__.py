"""SAM for trainers that do not let their ``backward`` be replaced.

``lowland.sam.trainers.lightning`` and ``.huggingface`` need their packages and are imported by name.
"""

from lowland.sam.trainers.optimizer import SAMOptimizer

__all__ = ["SAMOptimizer"]
