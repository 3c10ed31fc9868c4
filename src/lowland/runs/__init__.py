"""A run's directory: config, environment, metrics, checkpoint; tables; many small runs at once."""

from lowland.runs.arrays import read_arrays
from lowland.runs.directory import Run, config_hash
from lowland.runs.environment import describe_environment
from lowland.runs.lines import read_lines
from lowland.runs.results import as_rows, read_table, table_of, write_results
from lowland.runs.schema import JSONObject, conform, read_json

__all__ = [
    "JSONObject",
    "Run",
    "as_rows",
    "config_hash",
    "conform",
    "describe_environment",
    "read_arrays",
    "read_json",
    "read_lines",
    "read_table",
    "table_of",
    "write_results",
]
