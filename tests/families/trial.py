"""One family, run by the engine on a ragged batch and by transformers' eager attention on each row alone."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from models.checking import check_spec
from models.engine import Engine, EngineSettings
from models.errors import ModelsError
from models.spec import GenerationSpec, PromptRow
from tests.families.configurations import configuration
from tests.tiny_models import make_tokenizer

PROMPTS = ["Hi", "A much longer prompt, which takes more than one chunk and more than one block.", "Middle one.", "x"]
MOST_NATS = 1e-4
WEIGHT = 0.5


def trial(family: str, folder: Path) -> str:
    """`exact`, `refused: …` at submit, or else what is wrong; `none: …` where no tiny model can be made."""
    warnings.simplefilter("ignore")
    tokenizer = make_tokenizer()
    try:
        for seed, name in enumerate(("base", "arm")):
            _save(folder / name, family, seed, tokenizer)
        models = [_eager(folder / name) for name in ("base", "arm")]
        for model in models:
            _logprobs(model, tokenizer(PROMPTS[1])["input_ids"])
    except Exception as error:
        return f"none: {_line(error)}"
    spec = GenerationSpec.parse(
        {
            "base": str(folder / "base"),
            "arms": [{"name": "a", "ref": str(folder / "arm"), "weight": WEIGHT}],
            "raw": True,
            "sampling": {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True},
        }
    )
    try:
        check_spec(spec, folder)
    except ModelsError as error:
        return f"refused: {str(error).removeprefix(str(folder / 'base') + ': ')}"
    return _compared(spec, folder, models, tokenizer)


def _compared(spec: GenerationSpec, folder: Path, models: list[Any], tokenizer: Any) -> str:
    settings = EngineSettings(
        home=folder, device="cpu", dtype="float32", kv_cache_bytes=16 << 20, prefill_tokens=24, max_running=3
    )
    engine = Engine(settings)
    guided = engine.load(spec)
    rows = [PromptRow.parse({"prompt": prompt}, index, spec) for index, prompt in enumerate(PROMPTS)]
    futures = [engine.submit(guided, row) for row in rows]
    while engine.step():
        pass
    furthest, wrong = 0.0, 0
    for prompt, future in zip(PROMPTS, futures, strict=True):
        (found,) = future.result(timeout=0)
        ids = tokenizer(prompt)["input_ids"]
        base, arm = (_logprobs(model, ids + found.tokens)[len(ids) - 1 : -1, : len(tokenizer)] for model in models)
        total = base + WEIGHT * arm
        for place, token in enumerate(found.tokens):
            wrong += int(total[place].argmax()) != token
            for expected, given in ((base, found.base_logprobs), (arm, found.token_rewards["a"])):
                furthest = max(furthest, abs(expected[place, token].item() - given[place]))
    if wrong or not furthest <= MOST_NATS:
        return f"differs: {wrong} tokens, {furthest:.2g} nats"
    return "exact"


def _save(folder: Path, family: str, seed: int, tokenizer: Any) -> None:
    """A random model whose weights are large enough to matter."""
    torch.manual_seed(seed)
    config = configuration(family, len(tokenizer))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=1.0 if "emb" in name else 0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _eager(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def _logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
