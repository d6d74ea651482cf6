"""Datasets: rows in from JSONL, CSV and Parquet, rows out to the same."""

from db.datasets.columns import Columns
from db.datasets.reading import open_dataset
from db.datasets.writing import write_rows

__all__ = ["Columns", "open_dataset", "write_rows"]
