"""Preference pairs from completions: the text that a judge scores higher is chosen over one that it scores lower.

    python make_pairs.py --judge positive train.completions.jsonl train.pairs.jsonl --share --most 8

Reads what `genarm run` writes (id, prompt, completion, finish_reason) and writes {"id", "prompt", "chosen", "rejected",
"chosen_score", "rejected_score"}. The judges are vaderSentiment's compound score, from −1 to 1 (positive), and the
Flesch reading ease by textstat, where about 100 is easy and 0 is hard (plain).

Of each prompt, the two completions whose scores lie farthest apart become a pair, then the next two, while the scores
are far enough apart. A completion belongs to one pair, or with --share to several. Only completions of about equal
length become a pair: an ARM's reward is a sum over tokens, and would otherwise learn, and be judged by, length. A
completion that was cut off at its length limit is first shortened to its last whole sentence, so that every response
ends where a text may end.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

LONGEST_BY_SHORTEST = 1.15
MIN_WORDS = 8
SENTENCE_END = re.compile(r"[.!?…][\"'”’)*]*(?=\s|$)")


@dataclass(frozen=True)
class Judge:
    """Scores a text; a pair's scores lie at least `gap` apart."""

    score: Callable[[str], float]
    gap: float


def positive() -> Judge:
    """VADER: how positive a text is."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return Judge(lambda text: analyzer.polarity_scores(text)["compound"], gap=0.5)


def plain() -> Judge:
    """Flesch reading ease: how easy a text is to read."""
    import textstat

    return Judge(textstat.flesch_reading_ease, gap=15.0)


JUDGES = {"positive": positive, "plain": plain}


def whole_sentences(completion: str, finish_reason: str) -> str:
    """The completion without a last sentence that was cut off; empty where nothing is left."""
    if finish_reason != "length":
        return completion.rstrip()
    ends = [match.end() for match in SENTENCE_END.finditer(completion)]
    return completion[: ends[-1]] if ends else ""


def scored(rows: list[dict[str, Any]], judge: Judge) -> list[tuple[float, str]]:
    """The usable completions of a prompt with their scores, worst first."""
    texts = {whole_sentences(row["completion"], row["finish_reason"]) for row in rows}
    usable = sorted(text for text in texts if len(text.split()) >= MIN_WORDS)
    return sorted((judge.score(text), text) for text in usable)


def farthest(
    texts: list[tuple[float, str]], gap: float, most: int, share: bool
) -> list[tuple[tuple[float, str], tuple[float, str]]]:
    """(better, worse) pairs of about equal length, the largest gap first.

    Args:
        texts: scores and texts, worst first.
        gap: between the scores of a pair, at least.
        most: pairs, at most.
        share: whether a text may belong to several pairs.
    """
    possible = [
        (better, worse)
        for better, worse in product(texts, repeat=2)
        if better[0] - worse[0] >= gap and _are_about_as_long(better[1], worse[1])
    ]
    found: list[tuple[tuple[float, str], tuple[float, str]]] = []
    for better, worse in sorted(possible, key=lambda pair: pair[1][0] - pair[0][0]):
        used = {text for pair in found for text in pair}
        if share or (better not in used and worse not in used):
            found.append((better, worse))
    return found[:most]


def _are_about_as_long(one: str, other: str) -> bool:
    shorter, longer = sorted((len(one), len(other)))
    return longer <= LONGEST_BY_SHORTEST * shorter


def pairs(rows: list[dict[str, Any]], judge: Judge, most: int, share: bool) -> Iterator[dict[str, Any]]:
    """The pairs of each prompt; rows of one prompt follow one another."""
    for (row_id, prompt), group in groupby(rows, key=lambda row: (row["id"], row["prompt"])):
        for (better_score, better), (worse_score, worse) in farthest(
            scored(list(group), judge), judge.gap, most, share
        ):
            yield {
                "id": row_id,
                "prompt": prompt,
                "chosen": better,
                "rejected": worse,
                "chosen_score": round(better_score, 4),
                "rejected_score": round(worse_score, 4),
            }


def main() -> None:
    """Read completions, write pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="completions, as `genarm run` writes them")
    parser.add_argument("target", type=Path, help="where the pairs go")
    parser.add_argument("--judge", choices=JUDGES, required=True)
    parser.add_argument("--most", type=int, default=3, help="pairs of a prompt")
    parser.add_argument("--share", action="store_true", help="a completion may belong to several pairs")
    options = parser.parse_args()
    with options.source.open(encoding="utf-8") as lines:
        completions = [json.loads(line) for line in lines]
    complete = [row for row in completions if row.get("error") is None]
    made = list(pairs(complete, JUDGES[options.judge](), options.most, options.share))
    options.target.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in made), encoding="utf-8")
    prompts = len({pair["id"] for pair in made})
    print(f"{options.target.name}: {len(made)} pairs of {prompts} prompts, from {len(completions)} completions")


if __name__ == "__main__":
    main()
