"""Tokens a second at real shapes with random weights: decodes by batch, guided or not, and prompts."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.initialization import no_init_weights

from benchmarks.gpu.device import ceilings, synchronize
from benchmarks.gpu.report import Note
from benchmarks.gpu.tiny import Started
from models.attention import NAME
from models.spec import PromptRow
from tests.tiny_models import make_tokenizer

SHAPES = {
    "8B": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288},
    "0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
}
"""Of Qwen3."""
QUICK_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NEW_TOKENS = 48
WARM_STEPS = 8


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    is_quick: bool

    @property
    def words(self) -> int:
        """Tokens of a prompt."""
        return 20 if self.is_quick else 256

    @property
    def vocabulary(self) -> int:
        """Tokens of every model."""
        return 500 if self.is_quick else 151_936

    def batches(self, is_guided: bool) -> tuple[int, ...]:
        """Rows that run at once."""
        if self.is_quick:
            return (2,)
        return (1, 64) if is_guided else (1, 16, 64, 256)

    def config(self, name: str) -> Qwen3Config:
        """The configuration of a model."""
        shape = QUICK_SHAPE if self.is_quick else SHAPES[name]
        return Qwen3Config(
            **shape, num_key_value_heads=2 if self.is_quick else 8, head_dim=16 if self.is_quick else 128,
            vocab_size=self.vocabulary, tie_word_embeddings=name != "8B", max_position_embeddings=8192,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, architectures=["Qwen3ForCausalLM"],
        )  # fmt: skip

    def prompt(self, row: int) -> str:
        """Words that no other row begins with."""
        count = self.vocabulary - 3
        return " ".join(f"w{7919 * (row + 1) * (place + 1) % count}" for place in range(self.words))


def make_folder(folder: Path, size: Size, name: str) -> Path:
    """A model's folder without weights: these are made on the device."""
    size.config(name).save_pretrained(folder / name)
    make_tokenizer(None, [f"w{index}" for index in range(size.vocabulary - 3)]).save_pretrained(folder / name)
    save_file({}, folder / name / "model.safetensors")
    return folder / name


def make_lora(folder: Path, base: Path, size: Size) -> Path:
    """A LoRA adapter of rank 8 on all linear layers of the large base, of random numbers."""
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", base_model_name_or_path=str(base)
    )
    with torch.device("meta"):
        adapted = get_peft_model(AutoModelForCausalLM.from_config(size.config("8B")), config)
    shapes = {name: tensor.shape for name, tensor in get_peft_model_state_dict(adapted).items()}
    (folder / "lora").mkdir()
    config.save_pretrained(folder / "lora")
    tensors = {name: torch.randn(shape, dtype=torch.bfloat16) * 0.01 for name, shape in shapes.items()}
    save_file(tensors, folder / "lora" / "adapter_model.safetensors")
    return folder / "lora"


def random_weights(description: Any, dtype: torch.dtype, device: torch.device, device_map: Any = None) -> Any:
    """In place of `models.loading.load_weights`."""
    with device, no_init_weights():
        model = AutoModelForCausalLM.from_config(description.config, dtype=dtype, attn_implementation=NAME)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            else:
                weight.normal_(0, 0.02)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def bytes_of(started: Started) -> tuple[int, int]:
    """What a step reads of the weights, and what one more token of context adds."""
    read = context = 0
    for backbone in {id(model.backbone): model.backbone for model in started.guided.models}.values():
        config = backbone.model.config
        read += sum(weight.nbytes for weight in {id(one): one for one in backbone.model.parameters()}.values())
        if not config.tie_word_embeddings:
            read -= backbone.model.get_input_embeddings().weight.nbytes
        heads = config.num_key_value_heads * config.head_dim
        context += 2 * config.num_hidden_layers * heads * backbone.dtype.itemsize
    return read, context


def laps(started: Started, size: Size, count: int, device: torch.device) -> Iterator[tuple[float, bool]]:
    """Seconds of each step, and whether all rows decoded in it."""
    for row in range(count):
        sampling = {"max_new_tokens": NEW_TOKENS + count * size.words // 100}
        written = {"prompt": size.prompt(row), "sampling": sampling}
        started.engine.submit(started.guided, PromptRow.parse(written, row, started.spec))
    while True:
        running = started.engine._scheduler.running
        is_decode = len(running) == count and all(one.is_decoding for one in running)
        start = time.perf_counter()
        if not started.engine.step():
            return
        synchronize(device)
        yield time.perf_counter() - start, is_decode


def measure(started: Started, size: Size, count: int, peak: tuple[float, float], label: str, note: Note) -> None:
    """Prompts and decodes of a batch."""
    prompts, decodes = 0.0, list[float]()
    for seconds, is_decode in laps(started, size, count, started.guided.base.backbone.device):
        if decodes or is_decode:
            decodes.append(seconds)
        else:
            prompts += seconds
    read, context = bytes_of(started)
    settled = sorted(decodes[WARM_STEPS:-1] if len(decodes) > WARM_STEPS + 1 else decodes)
    step, p99 = statistics.median(settled), settled[int(0.99 * len(settled))]
    floor = (read + count * (size.words + NEW_TOKENS / 2) * context) / peak[0]
    rate = count * size.words / prompts
    figures = {
        "tokens_per_second": count / step,
        "seconds": step,
        "p99": p99,
        "of_floor": floor / step,
        "prompts": rate,
    }
    text = (
        f"{count / step:.0f} tokens/s, {1e3 * step:.2f} ms a step (p99 {1e3 * p99:.1f}), {floor / step:.0%} of the "
        f"copy's rate; prompts {rate:.0f} tokens/s, {read * rate / peak[1]:.0%} of the product's"
    )
    note(f"{label}, {count} rows", None, text, figures)


def throughput(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """The base alone, with a small ARM, and with a LoRA ARM that rides on it."""
    size, place = Size(is_quick), torch.device(device)
    peak = ceilings(place, is_quick)
    refs = {name: make_folder(folder, size, name) for name in SHAPES}
    with patch("models.zoo.load_weights", random_weights):
        for label, arm in (("8B alone", None), ("8B and 0.6B", "0.6B"), ("8B and LoRA", "lora")):
            if arm == "lora":
                refs["lora"] = make_lora(folder, refs["8B"], size)
            arms = [{"name": "arm", "ref": str(refs[arm]), "weight": 1.0}] if arm else []
            sampling = {"ignore_eos": True, "temperature": 1.0}
            written = {"base": str(refs["8B"]), "arms": arms, "sampling": sampling, "raw": True}
            cache = 2**24 if is_quick else 24 * 2**30
            started = Started(
                folder, device, written, dtype="bfloat16", kv_cache_bytes=cache, max_running=256, prefill_tokens=2048
            )
            for count in size.batches(bool(arm)):
                measure(started, size, count, peak, label, note)
