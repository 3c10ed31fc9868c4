"""A run's directory: config, environment, metrics, checkpoint; tables; many small runs at once."""

from lowland.runs.atomic import replace_atomically, write_json, write_text
from lowland.runs.directory import Run, config_hash
from lowland.runs.environment import describe_environment
from lowland.runs.lines import append_line, read_lines
from lowland.runs.results import as_rows, read_table, table_of, write_results
from lowland.runs.threads import in_threads

__all__ = [
    "Run",
    "append_line",
    "as_rows",
    "config_hash",
    "describe_environment",
    "in_threads",
    "read_lines",
    "read_table",
    "replace_atomically",
    "table_of",
    "write_json",
    "write_results",
    "write_text",
]
