"""The block pool hands every block out once, and takes every block back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.blocks import BlockPool


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=30))
def test_every_block_has_one_owner(count: int, block_size: int, steps: list[tuple[int, int]]) -> None:
    """Each step grows a table to some tokens, or releases it at 0."""
    pool = BlockPool(count, block_size)
    tables: list[list[int]] = [[] for _ in range(4)]
    for index, tokens in steps:
        table = tables[index]
        if tokens == 0:
            pool.release(table)
            assert table == []
        elif pool.blocks_for(tokens) - len(table) <= pool.free:
            before = list(table)
            pool.grow(table, tokens)
            assert table[: len(before)] == before
            assert len(table) == max(len(before), -(-tokens // block_size))
        owned = [block for one in tables for block in one]
        assert len(set(owned)) == len(owned) == count - pool.free
        assert set(owned) <= set(range(count))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_blocks_for_tokens(tokens: int, blocks: int) -> None:
    assert BlockPool(9, 16).blocks_for(tokens) == blocks


def test_freed_blocks_are_used_again() -> None:
    pool, table, other = BlockPool(2, 4), [], []
    pool.grow(table, 8)
    assert pool.free == 0
    pool.release(table)
    pool.grow(other, 8)
    assert sorted(other) == [0, 1]
