"""Four random LoRA adapters of a base, the same merged into copies of it, and the memory that models take."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from ours import OurEngine, Request
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = 8
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


def resident_bytes(base: str, arms: Sequence[str]) -> int:
    """Memory of a process that generates with these models, without the KV cache and what Python and PyTorch take."""
    command = [sys.executable, __file__, base, *arms]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _measure(base: str, arms: Sequence[str]) -> int:
    before = _resident()
    with tempfile.TemporaryDirectory() as home:
        engine = OurEngine(Path(home), base, arms, max_running=ROWS, kv_cache_bytes=KV_CACHE_BYTES)
        engine.seconds([Request(f"Prompt number {row}.", 60) for row in range(ROWS)])
        pool = engine.guided.base.backbone.pool
        kv_bytes = ROWS * (1 + len(arms)) * pool.blocks_for(4 + 60) * KV_CACHE_BYTES // pool.count
        return _resident() - before - kv_bytes


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2:]))
