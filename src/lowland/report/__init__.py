"""One page of everything that was drawn and run."""

from lowland.report.gathered import Gathered, gathered
from lowland.report.page import page

__all__ = ["Gathered", "gathered", "page"]
