"""The weak model of the ARM "positive-small": SmolLM2 with 10 of its 30 layers, tuned to stand alone.

    python small.py choose BASE completions.jsonl                             # prints the layers that stay
    python small.py cut BASE build/cut                                        # a model of them
    python small.py tune build/cut BASE completions.jsonl build/tuned         # LoRA: predict what the base predicts
    python small.py merge build/cut build/tuned build/small                   # a model to train an ARM on
    genarm arm train train.pairs.jsonl --base build/small -o build/arm …
    python small.py join build/cut build/tuned build/arm .                    # both adapters as one: what is shipped

and, of what is shipped, a model folder that is an ARM:

    python small.py cut BASE build/cut
    python small.py merge build/cut . .genarm/positive-small

The Makefile beside this folder runs all of them. BASE is a model's folder. The adapters are deltas of the same cut
model, so they add up to one adapter of the sum of their ranks, which is a tenth of the size of the model and needs none
of its weights.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from models.training.settings import TrainingSettings
from models.training.weights import add_adapter, precision

KEPT = (0, 1, 2, 8, 11, 21, 24, 27, 28, 29)
"""What `choose` finds: 3.8 nats a token from the base before tuning; the first nine layers and the last are at 17."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 56
NAME = "SmolLM2-135M-Instruct-10-layers"


def load(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model without gradients; eager attention is the fastest on a CPU for texts this short."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.requires_grad_(False)


def cut(base: Path, target: Path) -> None:
    """Write a model of the base's kept layers, with its tokenizer."""
    model = load(base)
    model.model.layers = nn.ModuleList(model.model.layers[index] for index in KEPT)
    model.config.num_hidden_layers = len(KEPT)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in KEPT]
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


@torch.no_grad()
def choose(base: Path, completions: Path, *, rows: int = 3) -> None:
    """Print KEPT: drop one layer after the other, each time the one without which KL(base ‖ model) is least."""
    model, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    batch, wanted = next(batches(tokenizer, completions, rows, 0))
    wished = distributions(model, batch, wanted)
    layers = model.model.layers

    def distance(kept: list[int]) -> float:
        model.model.layers = nn.ModuleList(layers[index] for index in kept)
        model.config.num_hidden_layers = len(kept)
        given = distributions(model, batch, wanted)
        return nn.functional.kl_div(given, wished, log_target=True, reduction="batchmean").item()

    kept = list(range(len(layers)))
    while len(kept) > len(KEPT):
        fewer = [[index for index in kept if index != dropped] for dropped in kept]
        kept = min(fewer, key=distance)
        print(f"{len(kept)} layers: KL {distance(kept):.2f} nats a token", flush=True)
    print(f"KEPT = {tuple(kept)}")


def batches(tokenizer: Any, completions: Path, rows: int, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of rows of about one length: input_ids and attention_mask [rows, length], and which positions predict."""
    encoded = []
    with completions.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row.get("error") is None:
                messages = [{"role": "user", "content": row["prompt"]}]
                start = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
                encoded.append((start, start + row["tokens"]))
    encoded.sort(key=lambda one: len(one[1]))
    groups = [encoded[first : first + rows] for first in range(0, len(encoded), rows)]
    random.Random(seed).shuffle(groups)
    for group in groups:
        longest = max(len(ids) for _, ids in group)
        ids = torch.tensor([one + [0] * (longest - len(one)) for _, one in group])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for _, one in group])
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        for row, (start, one) in enumerate(group):
            wanted[row, len(start) - 1 : len(one) - 1] = True
        yield {"input_ids": ids, "attention_mask": mask}, wanted


def distributions(model: Any, batch: dict[str, Tensor], wanted: Tensor) -> Tensor:
    """log π at the wanted positions, float32 [positions, vocab]."""
    hidden = model.get_base_model().model if isinstance(model, PeftModel) else model.model
    states = hidden(**batch, use_cache=False).last_hidden_state[wanted]
    return model.get_output_embeddings()(states).float().log_softmax(-1)


def tune(small: Path, base: Path, completions: Path, target: Path, *, epochs: int, most_steps: int | None) -> None:
    """Train an adapter of the small model on KL(base ‖ small) at every token of the base's own completions."""
    torch.manual_seed(0)
    teacher, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    settings = TrainingSettings(lora_rank=RANK, lora_alpha=RANK, targets=TARGETS, dtype="bfloat16")
    model = add_adapter(load(small), settings, str(small))
    plan = [batch for epoch in range(epochs) for batch in batches(tokenizer, completions, 16, epoch)][:most_steps]
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=2e-3, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(plan) // 20, len(plan))
    started, mean = time.monotonic(), 0.0
    for step, (batch, wanted) in enumerate(plan, start=1):
        with torch.no_grad():
            wished = distributions(teacher, batch, wanted)
        with precision(torch.device("cpu"), settings):
            given = distributions(model, batch, wanted)
        loss = nn.functional.kl_div(given, wished, log_target=True, reduction="batchmean")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean += loss.item()
        if step % 20 == 0 or step == len(plan):
            taken = time.monotonic() - started
            print(
                f"step {step} of {len(plan)}: KL {mean / ((step - 1) % 20 + 1):.3f} nats a token, {taken:.0f} s",
                flush=True,
            )
            mean = 0.0
    model.save_pretrained(target)


def merge(small: Path, adapter: Path, target: Path) -> None:
    """Write the small model with an adapter's changes in its weights."""
    merged = PeftModel.from_pretrained(load(small, torch.float32), adapter).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(small).save_pretrained(target)


def join(small: Path, tuned: Path, arm: Path, target: Path) -> None:
    """Write the sum of two adapters as one, in bfloat16."""
    model = PeftModel.from_pretrained(load(small), tuned, adapter_name="tuned")
    model.load_adapter(arm, adapter_name="arm")
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = NAME
    model.add_weighted_adapter(["tuned", "arm"], [1.0, 1.0], "default", combination_type="cat")
    model.to(torch.bfloat16).save_pretrained(target, selected_adapters=["default"])
    # PEFT writes every adapter but the one named "default" into a folder of its own.


def main() -> None:
    """One of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    folders = {
        "choose": ("base", "completions"),
        "cut": ("base", "target"),
        "tune": ("small", "base", "completions", "target"),
        "merge": ("small", "adapter", "target"),
        "join": ("small", "tuned", "arm", "target"),
    }
    for name, paths in folders.items():
        step = steps.add_parser(name)
        for path in paths:
            step.add_argument(path, type=Path)
    steps.choices["tune"].add_argument("--epochs", type=int, default=1)
    steps.choices["tune"].add_argument("--most-steps", type=int)
    options = vars(parser.parse_args())
    {"choose": choose, "cut": cut, "tune": tune, "merge": merge, "join": join}[options.pop("step")](**options)


if __name__ == "__main__":
    main()
