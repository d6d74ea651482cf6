"""Models whose layers lie on several devices: the same tokens, every tensor where its layer is, nothing offloaded.

There is one real device here. PyTorch's device "meta" stands for a second one: it computes no values, but refuses every
operation that mixes it with another device, which is what placement has to get right.
"""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModelForCausalLM

from models.attention import bytes_per_token
from models.backbone import Backbone
from models.blocks import BLOCK_SIZE
from models.errors import SpecError, UnsupportedModelError
from models.loading import describe, load_weights
from models.sequence import Stream
from models.zoo import Placement
from tests.tiny_models import make_adapter, make_model

CPU, FAR = torch.device("cpu"), torch.device("meta")
ROWS = [{"prompt": "one"}, {"prompt": "and a longer one"}]


@pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])
def test_a_device_map_of_one_device_gives_the_same_tokens(generate: Any, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    arm = make_adapter(tmp_path / "arm", base, seed=2)
    arms = [{"name": "kind", "ref": str(arm), "weight": 1.0}]
    spec = {"base": str(base), "arms": arms, "sampling": {"max_new_tokens": 12, "ignore_eos": True}}
    plain, mapped = generate(spec, ROWS), generate(spec, ROWS, device_map="auto")
    assert [row[0].tokens for row in plain] == [row[0].tokens for row in mapped]
    assert [row[0].token_rewards for row in plain] == [row[0].token_rewards for row in mapped]


def spread(folder: Path) -> torch.nn.Module:
    """A model whose second half lies on the far device, with the hooks that accelerate puts before its blocks."""
    description = describe(str(make_model(folder)), folder)
    model: Any = load_weights(description, torch.float32, CPU)
    half = description.config.num_hidden_layers // 2
    assert half > 0
    for block in (*model.model.layers[half:], model.model.norm, model.lm_head):
        block.to(FAR)
        add_hook_to_module(block, AlignDevicesHook(execution_device=FAR, place_submodules=True))
    return model


def test_keys_values_and_what_attention_needs_lie_where_their_layer_does(tmp_path: Path) -> None:
    model: Any = spread(tmp_path / "base")
    layers = model.config.num_hidden_layers
    shape = model.config
    per_token = 2 * layers * shape.num_key_value_heads * (shape.hidden_size // shape.num_attention_heads) * 4
    backbone = Backbone(model, "spread", 8 * BLOCK_SIZE * per_token, None)
    assert backbone.pool.count == 8
    cache: Any = backbone._cache
    assert [cache.keys[layer].device for layer in range(layers)] == [CPU] * (layers // 2) + [FAR] * (
        layers - layers // 2
    )
    streams = [Stream(backbone, None, list(range(1, count)), count - 1) for count in (6, 9)]
    for stream in streams:
        backbone.pool.grow(stream.blocks, 12)
    # A prefill of both, then a decode of both: one run each, then one for both.
    for _ in range(2):
        logits, wanting = backbone.run([stream.next_chunk(stream.pending) for stream in streams])
        assert (logits.shape[0], logits.device, len(wanting)) == (2, FAR, 2)
        for stream in streams:
            stream.tokens.append(3)
    assert cache.keys[0].count_nonzero() > 0


def test_a_model_that_would_be_offloaded_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base")
    description = describe(str(folder), tmp_path)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(description.config)
    bytes_ = sum(weight.numel() * weight.element_size() for weight in skeleton.parameters())
    device_map = accelerate.infer_auto_device_map(
        skeleton, max_memory={"cpu": int(bytes_ * 0.8)}, no_split_module_classes=skeleton._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    with pytest.raises(UnsupportedModelError, match=r"does not fit on the devices of this worker: .* lie on disk"):
        load_weights(description, torch.float32, CPU, device_map)


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:2", "there are 2 CUDA devices"), ("gpu", "use auto, cpu, cuda")]
)
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SpecError, match=message):
        Placement.choose(device, "float32")
    assert Placement.choose("cuda:1", "float32").device.index == 1


def test_bytes_per_token_is_of_all_devices_together(tmp_path: Path) -> None:
    backbone = Backbone(spread(tmp_path / "base"), "spread", 2**20, None)
    probe = backbone._probe()
    assert set(probe.devices.values()) == {CPU, FAR}
    assert backbone.pool.count == 2**20 // (bytes_per_token(probe.shapes, torch.float32) * BLOCK_SIZE)
