"""From a row to the token ids of one model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from models.errors import RowError
from models.rendering import Renderer
from models.spec import GenerationSpec, PromptRow, SamplingParams
from tests.tiny_models import OTHER_TEMPLATE, TEMPLATE, make_tokenizer

SPEC = GenerationSpec.parse({"base": "b"})
MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]


@pytest.fixture
def rendered() -> Callable[..., str]:
    """The text whose tokens a row's prompt is, spelt with the special tokens."""

    def render(
        row: dict[str, Any], template: str | None = TEMPLATE, system: str | None = None, raw: bool = False
    ) -> str:
        tokenizer = with_bos(make_tokenizer(None))
        renderer = Renderer(tokenizer, template, "tiny")
        return str(tokenizer.decode(renderer.prompt_ids(PromptRow.parse(row, 0, SPEC), system=system, raw=raw)))

    return render


def with_bos(tokenizer: Any) -> Any:
    """A tokenizer that begins every text with <s>, as those of most models do."""
    processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def test_a_prompt_is_one_user_message(rendered: Any) -> None:
    assert rendered({"prompt": "Hi"}) == "[user] Hi\n[assistant]"


def test_a_system_message_goes_before_a_prompt(rendered: Any) -> None:
    assert rendered({"prompt": "Hi"}, system="Be kind") == "[system] Be kind\n[user] Hi\n[assistant]"


def test_a_prompt_without_a_template_stands_as_it_is(rendered: Any) -> None:
    assert rendered({"prompt": "Hi"}, template=None) == "<s>Hi"
    assert rendered({"prompt": "Hi"}, template=None, system="Be kind") == "<s>Hi"


def test_raw_takes_no_template_but_the_tokenizers_bos(rendered: Any) -> None:
    assert rendered({"prompt": " Hi \n"}, raw=True) == "<s> Hi \n"


def test_messages_go_through_the_template_even_if_raw(rendered: Any) -> None:
    expected = "[system] S\n[user] U\n[assistant]"
    assert rendered({"messages": MESSAGES}) == expected
    assert rendered({"messages": MESSAGES}, raw=True) == expected


def test_messages_bring_their_own_system_message(rendered: Any) -> None:
    assert rendered({"messages": MESSAGES}, system="Be kind") == "[system] S\n[user] U\n[assistant]"


def test_the_given_template_counts_and_not_the_tokenizers(rendered: Any) -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    row = PromptRow.parse({"prompt": "Hi"}, 0, SPEC)
    ids = Renderer(tokenizer, OTHER_TEMPLATE, "tiny").prompt_ids(row, system=None, raw=False)
    assert tokenizer.decode(ids) == "Q: Hi A:"


def test_a_template_that_writes_bos_gets_no_second_one(rendered: Any) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert rendered({"prompt": "Hi"}, template=template) == "<s>Hi"


@pytest.mark.parametrize("prompt", ["naïve 漢字 🙂", "tab\tand\r\nlines", "zero\0byte", "[user] {{ 7 }}"])
def test_any_text_comes_through(rendered: Any, prompt: str) -> None:
    assert rendered({"prompt": prompt}) == f"[user] {prompt}\n[assistant]"


@pytest.mark.parametrize(
    ("row", "template", "named"),
    [
        ({"messages": MESSAGES}, None, "no chat template for `messages`"),
        ({"prompt": "Hi"}, "{{ raise_exception('only\\npoems') }}", "only poems"),
        ({"prompt": "Hi"}, "{{ nothing.there }}", "refuses the messages"),
        ({"prompt": "Hi"}, "{{ messages + 1 }}", "refuses the messages"),
        ({"prompt": "Hi"}, "{% for %}", "refuses the messages"),
        ({"prompt": "Hi"}, "{# says nothing #}", "no tokens"),
    ],
)
def test_a_row_that_cannot_be_rendered(rendered: Any, row: dict[str, Any], template: str | None, named: str) -> None:
    with pytest.raises(RowError) as refused:
        rendered(row, template=template)
    assert refused.value.code == "invalid_prompt"
    assert named in str(refused.value)
    assert "'tiny'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_text_leaves_special_tokens_out() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("Hi")["input_ids"]
    assert Renderer(tokenizer, None, "tiny").text([1, *ids, 2]) == "Hi"


def test_the_first_word_of_a_response_keeps_its_space() -> None:
    """In SentencePiece's manner: ▁ is a space, and a decoder leaves out the one at the beginning of a text."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁blue", "▁and", "s", ":"]
    vocabulary = {token: index for index, token in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token=":")
    renderer = Renderer(tokenizer, None, "tiny")

    def text(*tokens: str) -> str:
        return renderer.text([vocabulary[token] for token in tokens])

    assert text("▁blue", "▁and", "s") == " blue ands"
    assert text("a", "▁blue") == "a blue"
    assert text() == ""
    assert text("▁blue", "<0xC3>", "<0xA9>") == " blueé"
    assert text("▁blue", ":") == " blue"
    assert tokenizer.decode([vocabulary["▁blue"]]) == "blue"


def test_threads_may_share_a_renderer() -> None:
    renderer = Renderer(make_tokenizer(), TEMPLATE, "tiny")

    def there_and_back(index: int) -> str:
        ids = renderer.prompt_ids(PromptRow.parse({"prompt": f"row {index}"}, 0, SPEC), system=None, raw=False)
        return renderer.text(ids)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, range(200))) == [
            f"[user] row {index}\n[assistant]" for index in range(200)
        ]


@pytest.mark.parametrize(
    ("prompt", "response", "tokens"),
    [("a", "b", ["b"]), ("b", "ab", ["ab"]), ("a", "cb", ["c", "b"]), ("a", "", []), ("a", "c</s>", ["c"])],
)
def test_a_response_goes_on_after_its_prompt_and_is_closed_once(prompt: str, response: str, tokens: list[str]) -> None:
    """Where its first letter would merge with the prompt, it is tokenised alone."""
    vocabulary = {token: index for index, token in enumerate(["</s>", "a", "b", "c", "ab"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", "b")])), eos_token="</s>"
    )
    renderer = Renderer(tokenizer, None, "model")
    row = PromptRow(index=0, prompt=prompt, weights={}, sampling=SamplingParams())
    ids = [vocabulary[token] for token in tokens]
    assert renderer.response_ids(row, response, system=None, raw=False, is_closed=True) == [*ids, 0]
    expected = [*ids, 0] if response.endswith("</s>") else ids
    assert renderer.response_ids(row, response, system=None, raw=False, is_closed=False) == expected
