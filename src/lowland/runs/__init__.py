"""A run's directory: config, environment, metrics, checkpoint."""

from lowland.runs.atomic import replace_atomically, write_json
from lowland.runs.directory import Run, config_hash
from lowland.runs.environment import describe_environment

__all__ = ["Run", "config_hash", "describe_environment", "replace_atomically", "write_json"]
