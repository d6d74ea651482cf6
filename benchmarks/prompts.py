"""Prompts of an exact number of tokens that begin like no other, so that no cache helps anybody."""

import random
from functools import cache
from typing import Any


@cache
def _words(tokenizer: Any) -> list[str]:
    """Tokens that are a space and a lower-case word: they stay one token each side by side."""
    texts = tokenizer.convert_ids_to_tokens(range(1000, 20_000))
    return sorted({text[1:] for text in texts if text.startswith("Ġ") and text[1:].isalpha() and text[1:].islower()})


def prompts(tokenizer: Any, count: int, tokens: int, seed: int) -> list[str]:
    """`count` texts of `tokens` tokens each."""
    draw, found = random.Random(seed), []
    while len(found) < count:
        text = "".join(" " + word for word in draw.choices(_words(tokenizer), k=tokens))
        if len(tokenizer.encode(text, add_special_tokens=False)) == tokens:
            found.append(text)
    return found
