"""Four random LoRA adapters of a base, the same merged into copies of it, and the memory that models take."""

import gc
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.ours import OurEngine, Request

NEW_TOKENS = 60
KV_CACHE_BYTES = 2**30


def four_adapters(base: str, folder: Path) -> tuple[list[str], list[str]]:
    """Folders of four adapters (rank 8 on q, k and v, as in the paper), and of four models with them merged."""
    adapters, merged = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"]))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.01)
        adapters.append(str(folder / f"adapter{seed}"))
        merged.append(str(folder / f"merged{seed}"))
        adapted.save_pretrained(adapters[-1])
        adapted.merge_and_unload().save_pretrained(merged[-1])
        AutoTokenizer.from_pretrained(base).save_pretrained(merged[-1])
    return adapters, merged


def memory_bytes(base: str, adapters: Sequence[str], device: str, dtype: str, prompts: Sequence[str]) -> int:
    """Memory that a base with adapters takes on its device as it generates, without its KV cache.

    On the CPU it is what a process of its own grows by, so that what others left behind does not count.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        return processes.submit(_measure, base, adapters, device, dtype, prompts).result()


def _taken(device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * int(os.sysconf("SC_PAGE_SIZE"))


def _measure(base: str, adapters: Sequence[str], device: str, dtype: str, prompts: Sequence[str]) -> int:
    place = torch.device(device)
    before = _taken(place)
    with tempfile.TemporaryDirectory() as home:
        engine = OurEngine(Path(home), base, adapters, len(prompts), 1, device, dtype, KV_CACHE_BYTES)
        futures = engine.submit([Request(text, NEW_TOKENS) for text in prompts])
        while engine.engine.step():
            pass
        cache_bytes = KV_CACHE_BYTES
        if place.type == "cpu":  # where a cache takes memory page by page as it is written
            pool = engine.guided.base.backbone.pool
            lengths = [future.result(timeout=0)[0].prompt_tokens + NEW_TOKENS for future in futures]
            blocks = (1 + len(adapters)) * sum(pool.blocks_for(length) for length in lengths)
            cache_bytes = blocks * KV_CACHE_BYTES // pool.count
        return _taken(place) - before - cache_bytes
