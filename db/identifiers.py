"""Job ids: short, sortable by time, and safe in file names and URLs."""

import secrets
import time

PREFIX = "job-"
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base32: no letters that look like digits."""
TIME_DIGITS = 9
"""Enough for milliseconds until the year 3084."""
RANDOM_DIGITS = 6


def new_job_id() -> str:
    """An id like `job-1kvq2v7r09x3f8c`: the time in milliseconds, then 30 random bits."""
    return PREFIX + _digits(time.time_ns() // 1_000_000, TIME_DIGITS) + _digits(secrets.randbits(30), RANDOM_DIGITS)


def is_like_job_id(text: str) -> bool:
    """Whether text may be the beginning of an id; other text need not be looked for, and may hold what SQL cannot."""
    return bool(text) and set(text.removeprefix(PREFIX)) <= set(ALPHABET)


def _digits(number: int, count: int) -> str:
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(count)))
