import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.prompts import prompts
from tests.tiny_models import make_tokenizer

WORDS = ["house", "river", "stone", "cloud", "apple", "horse"]


def with_merges(space: str, normalizer: Any = None) -> Any:
    """A word is one token with the space before it, as a character of its own."""
    spelt = [space + word for word in WORDS]
    merges = [(word[:end], word[end]) for word in spelt for end in range(1, len(word))]
    tokens = sorted({*"".join(spelt)}) + [left + right for left, right in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def like_gpt() -> Any:
    tokenizer = with_merges("Ġ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def like_llama_2() -> Any:
    """Puts a space before every text, and takes it away as it decodes."""
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = with_merges("▁", prepend)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("make", [make_tokenizer, like_gpt, like_llama_2])
def test_prompts_have_exactly_as_many_tokens_and_never_come_twice(make):
    tokenizer, draw = make(), random.Random(0)
    texts = [*prompts(tokenizer, 10, 16, draw), *prompts(tokenizer, 10, 16, draw)]
    assert [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts] == [16] * 20
    assert len(set(texts)) == 20


@pytest.mark.parametrize("make", [like_gpt, like_llama_2])
def test_words_are_preferred_to_letters(make):
    (text,) = prompts(make(), 1, 5, random.Random(0))
    assert len(text.split()) == 5


def test_a_tokenizer_without_words_is_named_as_the_reason():
    tokenizer = make_tokenizer(words=["0", "1"])
    with pytest.raises(SystemExit, match="tokenizer"):
        prompts(tokenizer, 1, 4, random.Random(0))
