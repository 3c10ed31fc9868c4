"""The command line: ``lowland COMMAND``."""

from lowland.cli.start import main

__all__ = ["main"]
