"""What is known of a model before its weights: how long its context is, and which tokens end a response."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import PreTrainedTokenizerFast

from models.loading import describe
from models.references import _gguf_ends
from tests.fundamentals.chat_templates import COLLECTION
from tests.tiny_models import make_model


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("rope", "before", "context"),
    [
        ({"rope_type": "default"}, 256, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 256, 1024),
        ({"rope_type": "yarn", "factor": 4.0}, 256, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256, 256),
        ({"rope_type": "linear", "factor": 2.0}, 256, 512),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            512,
            512,
        ),
    ],
)
def test_scaled_positions(tmp_path: Path, rope: dict[str, Any], before: int, context: int) -> None:
    folder = make_model(tmp_path / "model", context=before)
    edit(folder / "config.json", rope_parameters=rope | {"rope_theta": 10000.0})
    assert describe(str(folder), tmp_path).context_tokens == context


def test_what_the_template_closes_a_response_with_ends_one(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", template=COLLECTION["chatml"], extra=["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert describe(str(folder), tmp_path).eos_ids == {2, end}
    plain = describe(str(folder), tmp_path, template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert plain.eos_ids == {2}


def test_all_that_generation_config_names_ends_one(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    edit(folder / "generation_config.json", eos_token_id=[2, 7])
    assert describe(str(folder), tmp_path).eos_ids == {2, 7}


def test_a_gguf_file_names_the_ends_of_turns_and_messages_too(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_eom_token_id(9)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert _gguf_ends(path) == [2, 5, 9]
