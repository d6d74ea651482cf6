"""Readers and writers of datasets, one file per format."""
