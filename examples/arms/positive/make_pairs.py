"""Preference pairs from completions: the more positive text is chosen over the less positive one.

    python make_pairs.py train.completions.jsonl train.pairs.jsonl

Reads what `genarm run` writes (id, prompt, completion, finish_reason) and writes {"id", "prompt", "chosen", "rejected",
"chosen_score", "rejected_score"}. The judge is vaderSentiment's compound score, from −1 to 1. Of each prompt, the two
completions whose scores lie farthest apart become a pair, then the two farthest of the rest, and so on, while the
scores are at least MIN_GAP apart. Only completions of about equal length become a pair: an ARM's reward is a sum over
tokens, and would otherwise learn, and be judged by, length. A completion that was cut off at its length limit is first
shortened to its last whole sentence, so that every response ends where a text may end.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

MIN_GAP = 0.5
LONGEST_BY_SHORTEST = 1.15
PAIRS_PER_PROMPT = 3
MIN_WORDS = 8
SENTENCE_END = re.compile(r"[.!?…][\"'”’)*]*(?=\s|$)")


def whole_sentences(completion: str, finish_reason: str) -> str:
    """The completion without a last sentence that was cut off; empty where nothing is left."""
    if finish_reason != "length":
        return completion.rstrip()
    ends = [match.end() for match in SENTENCE_END.finditer(completion)]
    return completion[: ends[-1]] if ends else ""


def scored(rows: list[dict[str, Any]], judge: SentimentIntensityAnalyzer) -> list[tuple[float, str]]:
    """The usable completions of a prompt with their scores, worst first."""
    texts = {whole_sentences(row["completion"], row["finish_reason"]) for row in rows}
    usable = sorted(text for text in texts if len(text.split()) >= MIN_WORDS)
    return sorted((judge.polarity_scores(text)["compound"], text) for text in usable)


def farthest(texts: list[tuple[float, str]]) -> list[tuple[tuple[float, str], tuple[float, str]]]:
    """Disjoint (better, worse) pairs of about equal length, the largest gap first."""
    possible = [
        (better, worse)
        for better in texts
        for worse in texts
        if better[0] - worse[0] >= MIN_GAP and _are_about_as_long(better[1], worse[1])
    ]
    chosen: list[tuple[tuple[float, str], tuple[float, str]]] = []
    for better, worse in sorted(possible, key=lambda pair: pair[1][0] - pair[0][0]):
        used = {text for pair in chosen for text in pair}
        if better not in used and worse not in used:
            chosen.append((better, worse))
    return chosen[:PAIRS_PER_PROMPT]


def _are_about_as_long(one: str, other: str) -> bool:
    shorter, longer = sorted((len(one), len(other)))
    return longer <= LONGEST_BY_SHORTEST * shorter


def pairs(rows: list[dict[str, Any]], judge: SentimentIntensityAnalyzer) -> Iterator[dict[str, Any]]:
    """The pairs of each prompt; rows of one prompt follow one another."""
    for (row_id, prompt), group in groupby(rows, key=lambda row: (row["id"], row["prompt"])):
        for (better_score, better), (worse_score, worse) in farthest(scored(list(group), judge)):
            yield {
                "id": row_id,
                "prompt": prompt,
                "chosen": better,
                "rejected": worse,
                "chosen_score": better_score,
                "rejected_score": worse_score,
            }


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    with source.open(encoding="utf-8") as lines:
        completions = [json.loads(line) for line in lines]
    made = list(pairs([row for row in completions if row.get("error") is None], SentimentIntensityAnalyzer()))
    target.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in made), encoding="utf-8")
    prompts = len({pair["id"] for pair in made})
    print(f"{target.name}: {len(made)} pairs of {prompts} prompts, from {len(completions)} completions")
