"""The kernels compute what PyTorch does, and a row's numbers are the same bit for bit whatever is beside it."""

import os
import platform
import subprocess
import sys
from array import array
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from models.attention import LayerShape
from models.gathered_attention import GatheredCache
from models.native import build
from models.native.attention import NativeCache
from models.native.kernels import Kernels, LowRankSegment, PackedWeight, RowSampling, kernels_for
from models.packing import pack
from models.sampling import draw
from models.sequence import Chunk, Stream
from models.spec import SamplingParams
from tests.one_thread import one_thread  # noqa: F401

DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")


def isas() -> list[str]:
    """The instruction sets that this machine can run."""
    if platform.machine() != "x86_64":
        return ["native"]
    beyond = {"AVX512": ["avx512", "avx2", "sse"], "AVX2": ["sse"]}
    return ["native", *beyond.get(torch.backends.cpu.get_cpu_capability(), [])]


ISAS = isas()
BUILDS = [(isa, dtype) for isa in ISAS for dtype in DTYPES if (isa, dtype) != ("avx512", torch.float32)]
"""Without products of bfloat16, float32 is what it is with them."""


def built(isa: str, dtype: torch.dtype) -> Kernels:
    found = kernels_for(CPU, dtype, isa)
    assert found is not None, "the kernels did not compile"
    return found


@pytest.fixture(params=BUILDS, ids=lambda build: f"{build[0]}-{build[1]}")
def kernels(request: Any) -> Kernels:
    return built(*request.param)


@pytest.fixture(params=[isa for isa in ISAS if isa != "avx512"])
def draw_kernels(request: Any) -> Kernels:
    """Logits are float32 in both builds of the library."""
    return built(request.param, torch.float32)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the order of float32 additions, and one rounding to the dtype."""
    eps = torch.finfo(found.dtype).eps if found.dtype != torch.float32 else 16 * torch.finfo(torch.float32).eps
    return torch.allclose(found.float(), expected.float(), rtol=eps, atol=eps * expected.abs().max().item() + 1e-30)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product(kernels: Kernels, states: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    out = torch.empty(len(states), weight.features, dtype=dtype)
    kernels.linear(states, weight, bias, out)
    return out


@pytest.mark.parametrize(("inner", "features"), [(2, 1), (48, 31), (64, 32), (130, 97), (576, 192)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(kernels: Kernels, inner: int, features: int, bias: bool) -> None:
    states, weight = numbers(29, inner, dtype=kernels.dtype), numbers(features, inner, dtype=kernels.dtype, seed=1)
    offset = numbers(features, seed=2) if bias else None
    found = product(kernels, states, kernels.pack(weight), offset, kernels.dtype)
    expected = states.double() @ weight.double().T + (offset.double() if offset is not None else 0)
    assert close(found, expected.to(kernels.dtype))
    wide = product(kernels, states, kernels.pack(weight), offset, torch.float32)
    assert torch.allclose(wide.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_linear_does_not_depend_on_other_rows_or_threads(kernels: Kernels, threads: int) -> None:
    """Few rows go through the inner dimension at once, many in blocks; more than 144 rows go in chunks."""
    states, packed = numbers(150, 1600, dtype=kernels.dtype), kernels.pack(numbers(200, 1600, seed=1))
    whole = product(kernels, states, packed, None, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (*range(1, 30), 149):
            part = product(kernels, states[1 : 1 + count], packed, None, torch.float32)
            assert torch.equal(part, whole[1 : 1 + count])
    finally:
        torch.set_num_threads(before)


def test_low_rank_updates_touch_their_rows_only(kernels: Kernels) -> None:
    states, out = numbers(1, 40, 64, dtype=kernels.dtype), numbers(1, 40, 97, dtype=kernels.dtype, seed=1)
    expected, segments = out.clone(), []
    for first, rows, rank, scaling in ((3, 9, 4, 2.0), (12, 1, 8, 0.5), (20, 17, 34, 1.0)):
        a, b = (numbers(*shape, seed=rank).to(kernels.dtype) / 8 for shape in ((rank, 64), (97, rank)))
        segments.append(LowRankSegment(first, rows, kernels.pack(a), kernels.pack(b), scaling))
        part = slice(first, first + rows)
        expected[:, part] += linear(linear(states[:, part], a), b) * scaling
    untouched = torch.cat([out[:, :3], out[:, 13:20], out[:, 37:]], dim=1)
    kernels.add_low_rank(states, out, segments)
    assert close(out, expected)
    assert torch.equal(torch.cat([out[:, :3], out[:, 13:20], out[:, 37:]], dim=1), untouched)


@pytest.mark.parametrize("dim", [8, 16, 33, 576])
def test_rms_norm(kernels: Kernels, dim: int) -> None:
    states, weight = numbers(5, dim, dtype=kernels.dtype), numbers(dim, dtype=kernels.dtype, seed=1)
    wide = states.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert close(kernels.rms_norm(states, weight, 1e-6), weight * scaled.to(kernels.dtype))


@pytest.mark.parametrize("count", [1, 16, 45])
def test_silu_mul(kernels: Kernels, count: int) -> None:
    gate, up = numbers(count, dtype=kernels.dtype) * 20, numbers(count, dtype=kernels.dtype, seed=1)
    gate[0] = -200.0
    assert close(kernels.silu_mul(gate, up), silu(gate) * up)


@pytest.mark.parametrize(("heads", "dim"), [(3, 64), (1, 12), (2, 40)])
def test_rotation_equals_transformers(kernels: Kernels, heads: int, dim: int) -> None:
    """Queries as attention modules view them, keys with a last dimension that is not dense."""
    query = numbers(5, 2 * heads, dim, dtype=kernels.dtype)
    key = numbers(5, dim, heads, dtype=kernels.dtype, seed=1).transpose(1, 2)
    cos, sin = numbers(5, dim, dtype=kernels.dtype, seed=2), numbers(5, dim, dtype=kernels.dtype, seed=3)
    found = kernels.rotate([query, key], cos, sin)
    expected = apply_rotary_pos_emb(query, key, cos, sin)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def streams_of(lengths: list[int], seed: int) -> list[Stream]:
    """Streams with that many tokens in the cache, in blocks handed out in a random order."""
    order = torch.randperm(256, generator=torch.Generator().manual_seed(seed)).tolist()
    streams = []
    for length in lengths:
        blocks = array("q", (order.pop() for _ in range(length // 16 + 1)))
        streams.append(Stream(None, None, [0] * (length + 1), length, blocks=blocks))
    return streams


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize(("heads", "group", "key_dim", "value_dim"), [(3, 3, 64, 64), (1, 4, 12, 8), (2, 16, 32, 24)])
def test_attention_equals_pytorchs(
    kernels: Kernels, heads: int, group: int, key_dim: int, value_dim: int, window: int | None
) -> None:
    """Prompts in chunks of several sizes, then decodes, beside one another."""
    shapes = {0: LayerShape(heads, key_dim, value_dim)}
    native, gathered = NativeCache(shapes, 256, kernels), GatheredCache(shapes, 256, torch.float32, CPU)
    streams = streams_of([150, 3, 64, 1], seed=3)
    for sizes in ([1, 2, 40, 0], [80, 1, 23, 0], [68, 0, 0, 0], [1, 1, 1, 1]):
        chunks = [Chunk(stream, size, 0) for stream, size in zip(streams, sizes, strict=True) if size]
        packed, tokens = pack(chunks), sum(sizes)
        query = numbers(tokens, heads * group, key_dim, dtype=kernels.dtype, seed=tokens)
        key = numbers(tokens, heads, key_dim, dtype=kernels.dtype, seed=tokens + 1)
        value = numbers(heads, tokens, value_dim, dtype=kernels.dtype, seed=tokens + 2).transpose(0, 1)
        found = native.step(packed).attend(0, query, key, value, 0.3, window)
        expected = gathered.step(packed).attend(0, query.float(), key.float(), value.float(), 0.3, window)
        assert close(found, expected.to(kernels.dtype))
        for chunk in chunks:
            chunk.stream.cached += chunk.count


def test_attention_does_not_depend_on_chunks(kernels: Kernels) -> None:
    """A prompt in one chunk, and token by token beside another sequence: the same bits."""
    shapes, length = {0: LayerShape(2, 16, 16)}, 90
    query, key, value = (numbers(length, n, 16, dtype=kernels.dtype, seed=n) for n in (6, 2, 2))

    def run(sizes: list[int], *, beside: bool) -> Tensor:
        cache, parts, first = NativeCache(shapes, 256, kernels), [], 0
        stream, other = streams_of([length, length], seed=len(sizes))
        for size in sizes:
            chunks = [Chunk(stream, size, 0)] + ([Chunk(other, 1, 0)] if beside else [])
            packed, part = pack(chunks), slice(first, first + size)
            at = packed.starts[packed.chunks.index(chunks[0])]
            rows = [torch.cat([x[:1], x[part]] if at else [x[part], x[: len(chunks) - 1]]) for x in (query, key, value)]
            parts.append(cache.step(packed).attend(0, *rows, 0.25, None)[at : at + size])
            first += size
            for chunk in chunks:
                chunk.stream.cached += chunk.count
        return torch.cat(parts)

    whole = run([length], beside=False)
    assert torch.equal(run([1] * length, beside=True), whole)
    assert torch.equal(run([7, 50, 33], beside=True), whole)


@pytest.mark.parametrize("at", [0, 17, 89])
def test_attention_keeps_what_is_not_a_number(kernels: Kernels, at: int) -> None:
    """A broken key spoils the tokens that see it, and no token before."""
    cache, (stream,) = NativeCache({0: LayerShape(1, 16, 16)}, 256, kernels), streams_of([90], seed=1)
    query, key, value = (numbers(90, 1, 16, dtype=kernels.dtype, seed=n) for n in range(3))
    key[at, 0, 3] = torch.nan
    out = cache.step(pack([Chunk(stream, 90, 0)])).attend(0, query, key, value, 0.25, None)
    assert out[:at].isfinite().all()
    assert out[at:].isnan().all()


SAMPLING = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6},
    {"temperature": 1e-40},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7},
    {"top_p": 1e-6},
]


@pytest.mark.parametrize("vocab", [17, 256, 3000])
@pytest.mark.parametrize("peaked", [0.0, 1.0, 8.0])
def test_draw_equals_pytorchs(draw_kernels: Kernels, vocab: int, peaked: float) -> None:
    """Base and two ARMs with vocabularies of other sizes, ids excluded, weights of either sign, equal logits."""
    sizes, excluded, rows = [vocab + 3, vocab, vocab + 1], [1, 4], 200
    logits = [(numbers(rows, size, seed=size) * peaked).round(decimals=1) for size in sizes]
    weights = np.ones((rows, 3), np.float32)
    weights[:, 1], weights[:, 2] = 0.7, -0.4
    uniforms = np.random.default_rng(0).random(rows).tolist()
    params = [SamplingParams(**SAMPLING[row % len(SAMPLING)]) for row in range(rows)]
    sampling = [RowSampling(p.top_k, p.temperature, p.top_p, p.min_p, u) for p, u in zip(params, uniforms, strict=True)]
    addresses = [[one.data_ptr() + row * one.shape[1] * 4 for one in logits] for row in range(rows)]
    tokens, logprobs = draw_kernels.draw(addresses, weights, sizes, vocab, excluded, sampling)
    scores = logits[0][:, :vocab] + torch.tensor(weights[:, 1:2]) * logits[1] - 0.4 * logits[2][:, :vocab]
    scores[:, excluded] = -torch.inf
    expected = draw(scores, params, uniforms)
    differing = [row for row in range(rows) if tokens[row] != expected[row]]
    assert len(differing) <= 1, "only a number that falls on a boundary may round differently"
    for row in set(range(rows)) - set(differing):
        token = tokens[row]
        reported = [one[row].double().log_softmax(0)[token].item() for one in (scores, *logits)]
        assert logprobs[row] == pytest.approx(reported, abs=2e-5)


def test_draw_from_the_base_alone_equals_pytorchs(draw_kernels: Kernels) -> None:
    logits, rows = numbers(45, 3000) * 4, 45
    uniforms = np.random.default_rng(1).random(rows).tolist()
    params = [SamplingParams(**SAMPLING[row % len(SAMPLING)]) for row in range(rows)]
    sampling = [RowSampling(p.top_k, p.temperature, p.top_p, p.min_p, u) for p, u in zip(params, uniforms, strict=True)]
    addresses = [[logits.data_ptr() + row * 12000] for row in range(rows)]
    tokens, logprobs = draw_kernels.draw(addresses, np.ones((rows, 1), np.float32), [3000], 3000, [], sampling)
    assert tokens == draw(logits, params, uniforms).tolist()
    expected = logits.double().log_softmax(1)[range(rows), tokens]
    assert torch.allclose(torch.tensor(logprobs, dtype=torch.float64), expected[:, None].expand(-1, 2), atol=2e-5)


@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("at", [0, 15, 38, 40])
def test_one_logit_that_is_not_a_number_leaves_nothing_to_draw_from(draw_kernels: Kernels, model: int, at: int) -> None:
    """In the base's or the ARM's logits, also at an id that only the ARM has."""
    logits = [torch.zeros(1, 39), torch.zeros(1, 41)]
    if at < logits[model].shape[1]:
        logits[model][0, at] = torch.nan
    how, weights = [RowSampling(0, 1.0, 1.0, 0.0, 0.5)], np.ones((1, 2), np.float32)
    tokens, _ = draw_kernels.draw([[one.data_ptr() for one in logits]], weights, [39, 41], 39, [], how)
    assert (tokens == [-1]) == any(bool(one.isnan().any()) for one in logits)


def test_draw_says_where_there_is_nothing_to_draw_from(draw_kernels: Kernels) -> None:
    logits = torch.zeros(3, 40)
    logits[0], logits[2, 7] = torch.nan, torch.inf
    addresses = [[logits.data_ptr() + row * 160] for row in range(3)]
    how = [RowSampling(0, 1.0, 1.0, 0.0, 0.5)] * 3
    tokens, _ = draw_kernels.draw(addresses, np.ones((3, 1), np.float32), [40], 40, [], how)
    assert tokens == [-1, 20, -1]


def test_no_compiler_means_pytorchs_operations(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    build.library.cache_clear()
    try:
        assert build.library(None) is None
        assert "no C compiler" in caplog.text
    finally:
        build.library.cache_clear()


def test_a_failing_compiler_means_pytorchs_operations(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, tmp_path: Any
) -> None:
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    monkeypatch.setattr(build, "FLAGS", ("-no-such-flag",))
    build.library.cache_clear()
    try:
        assert build.library(None) is None
        assert "do not compile" in caplog.text
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    finally:
        build.library.cache_clear()


def test_compiled_kernels_are_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    first, other = build.find_build(None), build.find_build("BFLOAT16")
    assert first is not None and other is not None
    assert not first.is_compiled
    first.compile()
    assert list(tmp_path.iterdir()) == [first.path]
    again = build.find_build(None)
    assert again is not None and again.is_compiled
    assert not other.is_compiled


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere PyTorch has no lesser instruction set")
@pytest.mark.parametrize(("capability", "isa"), [("avx2", "avx2"), ("default", "sse")])
def test_the_kernels_keep_to_the_instructions_that_pytorch_is_held_to(capability: str, isa: str) -> None:
    command = [sys.executable, "-c", "from models.native.build import held_to; print(held_to())"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    held = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    assert held.stdout.strip() == isa


def test_float16_and_other_devices_run_on_pytorch() -> None:
    assert kernels_for(CPU, torch.float16) is None
    assert kernels_for(torch.device("meta"), torch.float32) is None


@pytest.mark.parametrize("vocab", [1, 15, 16, 257, 5000])
def test_score_equals_pytorchs(draw_kernels: Kernels, vocab: int) -> None:
    padded, tokens = numbers(9, vocab + 3) * 8, [(7 * row) % vocab for row in range(9)]
    padded[:, vocab:] = 1e4  # rows of the head beyond the vocabulary
    if vocab > 1:
        padded[2, (tokens[2] + 1) % vocab] = -torch.inf
    padded[4, tokens[4]] = torch.nan
    found = torch.tensor(draw_kernels.score(padded[:, :vocab], tokens), dtype=torch.float64)
    expected = padded[:, :vocab].double().log_softmax(1)[range(9), tokens]
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-6, equal_nan=True)
