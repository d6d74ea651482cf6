"""The block pool hands every block out once, and takes every block back."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.blocks import BlockPool


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=30))
def test_every_block_has_one_owner(count: int, block_size: int, steps: list[tuple[int, int]]) -> None:
    """Each step grows a table to some tokens, or releases it at 0."""
    pool = BlockPool(count, block_size)
    tables = [array("q") for _ in range(4)]
    for index, tokens in steps:
        table = tables[index]
        if tokens == 0:
            pool.release(table)
            assert not table
        elif pool.blocks_for(tokens) - len(table) <= pool.free:
            before = table[:]
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
    pool, table, other = BlockPool(2, 4), array("q"), array("q")
    pool.grow(table, 8)
    assert pool.free == 0
    pool.release(table)
    pool.grow(other, 8)
    assert sorted(other) == [0, 1]


def test_a_published_block_is_shared_until_its_memory_is_needed() -> None:
    pool, first, second, third = BlockPool(3, 4), array("q"), array("q"), array("q")
    pool.grow(first, 8)
    pool.publish(first[0], b"a")
    pool.publish(first[1], b"ab")
    assert pool.share(second, b"a")
    assert second == first[:1]
    assert pool.free == 1
    pool.release(first)
    assert pool.free == 2  # the second table holds block "a", nobody holds "ab"
    pool.grow(third, 8)  # takes the empty block, then the idle one
    assert pool.free == 0
    assert not pool.share(first, b"ab")
    assert pool.share(first, b"a")


def test_the_end_of_a_sequence_is_evicted_before_its_beginning() -> None:
    pool, table, other = BlockPool(3, 4), array("q"), array("q")
    pool.grow(table, 12)
    for block, digest in zip(table, (b"a", b"ab", b"abc"), strict=True):
        pool.publish(block, digest)
    pool.release(table)
    pool.grow(other, 4)
    assert [pool.share(table, digest) for digest in (b"a", b"ab", b"abc")] == [True, True, False]


def test_the_first_with_a_digest_stays() -> None:
    pool, first, second = BlockPool(2, 4), array("q"), array("q")
    pool.grow(first, 4)
    pool.grow(second, 4)
    pool.publish(first[0], b"a")
    pool.publish(second[0], b"a")
    pool.release(second)
    assert pool.free == 1
    assert pool.share(second, b"a")
    assert second == first


def test_what_is_forgotten_is_shared_no_more() -> None:
    pool, table = BlockPool(2, 4), array("q")
    pool.grow(table, 8)
    pool.publish(table[0], b"a")
    pool.publish(table[1], b"ab")
    pool.forget()
    assert not pool.share(array("q"), b"a")
    pool.release(table)
    assert pool.free == 2
