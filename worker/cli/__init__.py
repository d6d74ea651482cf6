"""The command line `genarm`: one file per command group, and `console.py`, which alone prints."""

from worker.cli.main import main

__all__ = ["main"]
