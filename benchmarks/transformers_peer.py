"""The peer that anyone would write: transformers with a LogitsProcessor that runs the ARM on a cache of its own."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessor

from benchmarks.ours import Request
from models.zoo import Placement


class ArmProcessor(LogitsProcessor):  # type: ignore[misc]
    """Adds an ARM's log-probabilities to those of the base, as method and paper say."""

    def __init__(self, arm: Any, mask: torch.Tensor, weight: float) -> None:
        self.arm, self.mask, self.weight, self.cache = arm, mask, weight, DynamicCache()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[batch, tokens] and [batch, vocab] to [batch, vocab]."""
        new = input_ids[:, self.cache.get_seq_length() :]
        grown = input_ids.shape[1] - self.mask.shape[1]
        self.mask = torch.nn.functional.pad(self.mask, (0, grown), value=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        out = self.arm(
            input_ids=new,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        rewards: torch.Tensor = out.logits[:, -1].float().log_softmax(-1)
        return scores.log_softmax(-1) + self.weight * rewards


class TransformersPeer:
    """Static batches through `generate`, unguided or guided by one full-size ARM."""

    def __init__(self, base: str, arm: str | None, placement: Placement, batch: int) -> None:
        self.batch = batch
        self.placement = placement
        self.tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.base = self._load(base)
        self.arm = self._load(arm) if arm is not None else None

    def _load(self, model: str) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=self.placement.dtype)
        return loaded.to(self.placement.device).eval()

    def seconds(self, requests: Sequence[Request]) -> float:
        """Time for all requests, in batches; each batch runs as long as its longest request."""
        started = time.perf_counter()
        for first in range(0, len(requests), self.batch):
            self._generate(requests[first : first + self.batch])
        if self.placement.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _generate(self, requests: Sequence[Request]) -> None:
        new_tokens = max(one.new_tokens for one in requests)
        inputs = self.tokenizer([one.prompt for one in requests], return_tensors="pt", padding=True)
        inputs = inputs.to(self.placement.device)
        processors = [ArmProcessor(self.arm, inputs["attention_mask"], 1.0)] if self.arm else []
        with torch.inference_mode():
            self.base.generate(
                **inputs,
                logits_processor=processors,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
