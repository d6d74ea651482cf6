"""The texts of single tokens, as the report's reader joins them, against the tokenizer's own decoding."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import SPECIAL, make_tokenizer
from worker.report.tokens import token_texts

TEXTS = ["The cat sat.", "naïve 漢字 🎉\n\ttabs, and  two spaces", " begins with a space", "<0x41> ▁ is text"]


def sentencepiece_like(extra):
    """As Llama 2's: ▁ for a space, bytes as <0xNN> where a letter has no token, a space put before the text."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,T", *extra]
    tokens = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


@pytest.mark.parametrize("text", TEXTS)
def test_joined_texts_of_a_byte_level_tokenizer_are_its_text(text):
    tokenizer = make_tokenizer(extra=["Ġmoons", "æ¼¢"])
    ids = [*tokenizer.encode(text), *tokenizer.convert_tokens_to_ids(["Ġmoons", "æ¼¢"])]
    assert joined(tokenizer, ids) == tokenizer.decode(ids) == f"{text} moons漢"


@pytest.mark.parametrize("text", TEXTS[:3])
def test_joined_texts_of_a_sentencepiece_tokenizer_are_its_text_behind_a_space(text):
    tokenizer = sentencepiece_like(extra=["▁moons"])
    ids = [*tokenizer.encode(text), tokenizer.convert_tokens_to_ids("▁moons")]
    assert len(ids) > len(text)  # a byte has a token of its own
    assert joined(tokenizer, ids) == f" {tokenizer.decode(ids)}" == f" {text} moons"


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), sentencepiece_like([])], ids=["byte-level", "sentencepiece"])
def test_special_tokens_show_as_they_are_written_and_unknown_ids_as_nothing(tokenizer):
    end, nobody = tokenizer.eos_token_id, len(tokenizer) + 5
    assert token_texts(tokenizer, [end, nobody]) == {end: b"</s>", nobody: b""}


def joined(tokenizer, ids):
    texts = token_texts(tokenizer, set(ids))
    return b"".join(texts[index] for index in ids).decode()
