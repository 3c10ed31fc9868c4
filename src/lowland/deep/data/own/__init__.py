"""Data of somebody's own: image folders, Parquet files, arrays, and what a function returns."""

from lowland.deep.data.own.examples import OwnData
from lowland.deep.data.own.read import read_own_data

__all__ = ["OwnData", "read_own_data"]
