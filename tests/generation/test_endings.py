"""How a response ends: EOS, stop strings, max_new_tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.completion import Completion
from tests.tiny_models import make_model, make_reciter, spec_of

EOS = 2
PIECES = [b"Hel", b"lo, na", b"\xc3\xafve ", b"\xe6\xbc", b"\xa2\xe5\xad", b"\x97! ST", b"OP the", b" END"]
TEXT = b"".join(PIECES).decode()  # Hello, naïve 漢字! STOP the END


@pytest.fixture(scope="module")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reciter(tmp_path_factory.mktemp("models") / "reciter", PIECES)


@pytest.fixture
def recite(generate: Any, reciter: Path) -> Callable[..., Completion]:
    def run(**sampling: Any) -> Completion:
        completion: Completion = generate(spec_of(reciter, ("own", reciter, 0.5), **sampling), [{"prompt": "Go"}])[0][0]
        for series in (completion.logprobs, completion.base_logprobs, completion.token_rewards["own"]):
            assert len(series) == len(completion.tokens)
        return completion

    return run


def test_eos_ends_and_is_counted(recite: Any) -> None:
    done = recite(max_new_tokens=50)
    assert (done.text, done.finish_reason) == (TEXT, "stop")
    assert len(done.tokens) == len(PIECES) + 1
    assert done.tokens[-1] == EOS


def test_eos_at_the_last_allowed_token_is_a_stop(recite: Any) -> None:
    done = recite(max_new_tokens=len(PIECES) + 1)
    assert (done.text, done.finish_reason) == (TEXT, "stop")


def test_max_new_tokens_ends(recite: Any) -> None:
    done = recite(max_new_tokens=2)
    assert (done.text, done.finish_reason, len(done.tokens)) == ("Hello, na", "length", 2)


def test_one_token(recite: Any) -> None:
    done = recite(max_new_tokens=1)
    assert (done.text, done.finish_reason, len(done.tokens)) == ("Hel", "length", 1)


def test_ignored_eos_goes_on_and_leaves_no_trace_in_the_text(recite: Any) -> None:
    done = recite(max_new_tokens=12, ignore_eos=True)
    assert (done.finish_reason, len(done.tokens)) == ("length", 12)
    assert done.tokens[len(PIECES)] == EOS
    assert done.text.startswith(TEXT)
    assert "</s>" not in done.text


def test_a_text_cut_inside_a_character_ends_with_its_mark(recite: Any) -> None:
    assert recite(max_new_tokens=4).text == "Hello, naïve \ufffd"


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        (["Hel"], "", 1),
        (["o"], "Hell", 2),
        (["llo"], "He", 2),  # over a border of tokens
        (["ï"], "Hello, na", 3),
        (["ve 漢"], "Hello, naï", 5),  # ends inside the token that completes it
        (["漢字"], "Hello, naïve ", 6),
        (["STOP"], "Hello, naïve 漢字! ", 7),
        (["P t", "ST"], "Hello, naïve 漢字! ", 6),
        (["the", "STOP"], "Hello, naïve 漢字! ", 7),  # one token completes both: the earlier one counts
        (["nowhere", "END"], "Hello, naïve 漢字! STOP the ", 8),
        (["o, naïve 漢字! STOP the E"], "Hell", 8),
    ],
)
def test_stop_strings(recite: Any, stop: list[str], text: str, tokens: int) -> None:
    done = recite(stop=stop, max_new_tokens=50)
    assert (done.text, done.finish_reason) == (text, "stop")
    assert len(done.tokens) == tokens


def test_a_stop_string_at_the_last_allowed_token_is_a_stop(recite: Any) -> None:
    done = recite(stop=["naïve"], max_new_tokens=3)
    assert (done.text, done.finish_reason) == ("Hello, ", "stop")


def test_a_stop_string_that_does_not_come(recite: Any) -> None:
    assert recite(stop=["hello"], max_new_tokens=50).text == TEXT


def test_stop_strings_in_the_prompt_do_not_count(generate: Any, reciter: Path) -> None:
    spec = spec_of(reciter, stop=["[assistant]", "Go"], max_new_tokens=50)
    assert generate(spec, [{"prompt": "Go"}])[0][0].text == TEXT


def test_stop_strings_work_while_eos_is_ignored(recite: Any) -> None:
    assert recite(stop=["字"], ignore_eos=True, max_new_tokens=50).text == "Hello, naïve 漢"


def test_each_row_ends_in_its_own_way(generate: Any, reciter: Path) -> None:
    own = [{}, {"stop": ["na"]}, {"max_new_tokens": 1}, {"stop": []}, {"stop": ["END", "Hello"]}]
    rows = [{"prompt": f"Go {index}", "sampling": sampling} for index, sampling in enumerate(own)]
    done = [row[0] for row in generate(spec_of(reciter, stop=["STOP"], max_new_tokens=50), rows)]
    assert [one.text for one in done] == ["Hello, naïve 漢字! ", "Hello, ", "Hel", TEXT, ""]
    assert [one.finish_reason for one in done] == ["stop", "stop", "length", "stop", "stop"]


def test_ends_at_any_of_the_models_eos_tokens(generate: Any, tmp_path: Path) -> None:
    """Chat models end a turn with another token than a text: generation_config.json names both."""
    reciter = make_reciter(tmp_path / "reciter", [b"one ", b"two ", b"end."], eos=False)
    spec = spec_of(reciter, max_new_tokens=5)
    full = generate(spec, [{"prompt": "Go"}])[0][0]
    assert full.finish_reason == "length"
    (reciter / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, full.tokens[1]]}))
    ended = generate(spec, [{"prompt": "Go"}])[0][0]
    assert (ended.finish_reason, ended.tokens) == ("stop", full.tokens[:2])


def test_prompt_tokens_are_the_bases(generate: Any, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    arm = make_model(tmp_path / "arm", template="a much longer template {{ messages[0].content }}")
    done = generate(spec_of(base, ("arm", arm, 1.0)), [{"prompt": "Hi"}])[0][0]
    assert done.prompt_tokens == len("[user] Hi\n[assistant]")
