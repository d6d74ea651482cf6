"""Datasets: rows in from JSONL, CSV, Parquet and Hugging Face datasets, rows out to files."""

from db.datasets.columns import Columns
from db.datasets.reading import DatasetSource, format_of, open_dataset, placed_rows
from db.datasets.template import Template

__all__ = ["Columns", "DatasetSource", "Template", "format_of", "open_dataset", "placed_rows"]
