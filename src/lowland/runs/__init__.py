"""A run's directory: config, environment, metrics, checkpoint; tables; many small runs at once."""

from lowland.runs.arrays import read_arrays
from lowland.runs.atomic import replace_atomically, write_json, write_text
from lowland.runs.directory import Run, config_hash
from lowland.runs.environment import describe_environment, installed_packages
from lowland.runs.lines import append_line, read_lines
from lowland.runs.records import SmallRow
from lowland.runs.results import as_rows, read_table, table_of, write_results
from lowland.runs.schema import JSONObject, conform, parse_json, read_json
from lowland.runs.threads import end_if_given_up, in_pieces, in_threads, require_threads

__all__ = [
    "JSONObject",
    "Run",
    "SmallRow",
    "append_line",
    "as_rows",
    "config_hash",
    "conform",
    "describe_environment",
    "end_if_given_up",
    "in_pieces",
    "in_threads",
    "installed_packages",
    "parse_json",
    "read_arrays",
    "read_json",
    "read_lines",
    "read_table",
    "replace_atomically",
    "require_threads",
    "table_of",
    "write_json",
    "write_results",
    "write_text",
]
