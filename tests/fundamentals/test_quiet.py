"""What libraries say that no user can do anything about is silent, where genarm starts, and nowhere else."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from worker import quiet

ASK = """
import logging, os, warnings
before = list(warnings.filters), dict(os.environ)
import models, models.spec, models.errors
assert (list(warnings.filters), dict(os.environ)) == before
import models.engine, models.training.run
from worker.quiet import LOGGERS, WARNINGS
print([logging.getLogger(name).level for name in LOGGERS])
print([found for _, found, *_ in warnings.filters if found and any(found.match(said) for said in WARNINGS)])
print({name: os.environ.get(name) for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")})
"""


def test_an_import_of_models_sets_no_logger_no_filter_and_no_variable() -> None:
    outside = {name: value for name, value in os.environ.items() if "TQDM" not in name and "HF_HUB" not in name}
    done = subprocess.run([sys.executable, "-c", ASK], env=outside, check=True, capture_output=True, text=True)
    levels, filters, variables = done.stdout.splitlines()
    assert levels == str([logging.NOTSET] * len(quiet.LOGGERS))
    assert filters == "[]"
    assert variables == "{'TQDM_DISABLE': None, 'HF_HUB_DISABLE_PROGRESS_BARS': None}"


def test_only_what_is_named_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.resetwarnings()
        quiet.hush()
        for beginning, category in quiet.WARNINGS.items():
            warnings.warn(f"{beginning}, and more", category, stacklevel=1)
            warnings.warn(f"{beginning}, and more", RuntimeWarning, stacklevel=1)
        warnings.warn("`other` is deprecated", FutureWarning, stacklevel=1)
    assert [one.category for one in heard] == [RuntimeWarning] * len(quiet.WARNINGS) + [FutureWarning]
    for name in quiet.LOGGERS:
        logging.getLogger(name).warning("of the import")
        logging.getLogger(name).error("of a fault")
    assert [record.message for record in caplog.records] == ["of a fault"] * len(quiet.LOGGERS)
