"""Prompts of an exact number of tokens that begin like no other, so that no cache helps anybody."""

import random
import sys
from functools import cache
from typing import Any

MOST_TRIES = 1000


@cache
def _words(tokenizer: Any) -> list[str]:
    """Tokens that are a space and a lower-case word; single letters where the tokenizer has no words.

    They stay one token each side by side, most of them.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)  # since some tokenizers drop a space that comes first
    start = len(tokenizer.decode(anchor))
    texts = {text[start:] for text in tokenizer.batch_decode([[*anchor, token] for token in range(len(tokenizer))])}
    words = [text for text in texts if text[:1] == " " and text[1:].isalpha() and text.islower()]
    return sorted(words or [text for text in texts if len(text) == 1 and text.isalpha() and text.islower()])


def prompts(tokenizer: Any, count: int, tokens: int, draw: random.Random) -> list[str]:
    """`count` texts of `tokens` tokens each."""
    words, found = _words(tokenizer), list[str]()
    for _ in range(MOST_TRIES * count if words else 0):
        drawn = "".join(draw.choices(words, k=tokens))
        for text in (drawn, drawn.lstrip()):  # some tokenizers put a space before every text themselves
            if len(tokenizer.encode(text, add_special_tokens=False)) == tokens:
                found.append(text)
                break
        if len(found) == count:
            return found
    sys.exit(f"no prompts of exactly {tokens} tokens were found for this model's tokenizer")
