"""How long sequences wait for their tokens: counts in buckets, cheap enough to be kept for every token."""

from bisect import bisect_left

from models.sequence import Sequence

FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
INTER_TOKEN_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip


class Buckets:
    """Durations counted by size; one thread adds, any may read.

    Args:
        bounds: the longest duration of each bucket, in seconds, ascending; one more bucket holds what is longer.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0
        """The sum of all durations."""

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds


class Latencies:
    """The time to a sequence's first token, and from each token to its next; a preemption counts as waiting."""

    def __init__(self) -> None:
        self.first_token = Buckets(FIRST_TOKEN_SECONDS)
        self.inter_token = Buckets(INTER_TOKEN_SECONDS)

    def note(self, sequence: Sequence, now: float) -> None:
        """Count the token that a sequence has just got.

        Args:
            sequence: with the token in its response.
            now: by `time.monotonic`.
        """
        if len(sequence.response) == 1:
            self.first_token.add(now - sequence.arrived_at)
        else:
            self.inter_token.add(now - sequence.drawn_at)
        sequence.drawn_at = now
