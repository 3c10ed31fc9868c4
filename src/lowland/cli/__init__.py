"""The command line: ``lowland COMMAND``."""

from lowland.cli.command import main

__all__ = ["main"]
