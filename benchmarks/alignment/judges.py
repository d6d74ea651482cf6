"""The gold scorers, which no method sees while it generates, and what else a text shows by itself."""

from collections.abc import Sequence
from functools import cache

FLESCH_RANGE = (0.0, 121.22)
"""Flesch's formula has no lower end: one made-up word of thirty syllables would outweigh a hundred texts."""


@cache
def _analyzer() -> "object":
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def positive(text: str) -> float:
    """VADER's compound score, from −1 to 1."""
    return float(_analyzer().polarity_scores(text)["compound"])  # type: ignore[attr-defined]


def plain(text: str) -> float:
    """Flesch reading ease, held between 0 (hard, or no words at all) and 121.22 (as easy as can be)."""
    import textstat

    low, high = FLESCH_RANGE
    return float(min(high, max(low, textstat.flesch_reading_ease(text))))


JUDGES = {"positive": positive, "plain": plain}


def variety(text: str) -> float:
    """Π_{n=2..4} (1 − rep_n) of one text, rep_n the share of its n-grams of words that repeat: 1 says nothing twice."""
    words = text.lower().split()
    product = 1.0
    for n in (2, 3, 4):
        grams = _ngrams(words, n)
        product *= len(set(grams)) / len(grams) if grams else 1.0
    return product


def distinct_2(texts: Sequence[str]) -> float:
    """Different bigrams of words over all bigrams, in all texts together."""
    grams = [gram for text in texts for gram in _ngrams(text.lower().split(), 2)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))
