"""The tests of the kernels, with kernels compiled for Arm and run by qemu-user: right there, however slow.

`make test-arm` runs them; they are skipped where Debian's gcc-aarch64-linux-gnu and qemu-user are not installed.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.native.kernels import Kernels
from tests.arm.library import COMPILER, EMULATOR, ArmLibrary
from tests.fundamentals.test_kernels import (  # noqa: F401
    DTYPES,
    one_thread,
    test_attention_does_not_depend_on_chunks,
    test_attention_equals_pytorchs,
    test_attention_keeps_what_is_not_a_number,
    test_draw_equals_pytorchs,
    test_draw_from_the_base_alone_equals_pytorchs,
    test_draw_says_where_there_is_nothing_to_draw_from,
    test_linear,
    test_linear_does_not_depend_on_other_rows_or_threads,
    test_low_rank_updates_touch_their_rows_only,
    test_one_logit_that_is_not_a_number_leaves_nothing_to_draw_from,
    test_rms_norm,
    test_rotation_equals_transformers,
    test_score_equals_pytorchs,
    test_silu_mul,
)

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason="needs gcc-aarch64-linux-gnu and qemu-user"
)


def on_arm(dtype: torch.dtype, folder: Path) -> Iterator[Kernels]:
    library: Any = ArmLibrary(dtype, folder)
    yield Kernels(library, dtype)
    library.close()


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def kernels(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernels]:
    yield from on_arm(request.param, tmp_path_factory.mktemp("arm"))


@pytest.fixture(scope="module")
def draw_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernels]:
    yield from on_arm(torch.float32, tmp_path_factory.mktemp("arm"))
