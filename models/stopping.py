"""Stop strings: finding them in a growing response without decoding all of it at every token."""

from collections.abc import Callable, Sequence


class StopMatcher:
    """Looks for stop strings at the end of a response.

    Args:
        stops: the strings that end a response.
        decode: token ids to text.
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self._stops = stops
        self._decode = decode
        # A match that the last token completed lies within so many characters at the end; a few more keep it clear of
        # what a decoder does to the first token of a text, and of a character cut in the middle.
        self._characters = max((len(stop) for stop in stops), default=0) + 4
        self._tokens = max((len(stop.encode()) for stop in stops), default=0) + 4

    def text_before_stop(self, tokens: list[int]) -> str | None:
        """The response's text up to the earliest stop string, or None where there is none.

        Args:
            tokens: the response so far; earlier prefixes of it have been looked at.
        """
        if not self._stops:
            return None
        tail = self._tail(tokens)
        if not any(stop in tail for stop in self._stops):
            return None
        text = self._decode(tokens)
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else None

    def _tail(self, tokens: list[int]) -> str:
        """The end of the response's text, long enough for a match; a special token adds nothing to it."""
        count = self._tokens
        while len(tail := self._decode(tokens[-count:])) < self._characters and count < len(tokens):
            count *= 2
        return tail
