"""The kernels as functions of tensors. Shapes are trusted: the modules of this package are the callers."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from models.native.build import library
from models.packing import Integers

BLOCK = 16
"""Tokens in a block of the KV cache: attention.c."""
MOST_LANES = 16
"""Numbers in the widest vector that the kernels are compiled for; memory for whole vectors is rounded up to it."""
DEFINES = {torch.bfloat16: "BFLOAT16", torch.float32: None}
"""How the library is compiled for each dtype of weights and activations."""
MOST_HEAD_DIM = 512


class _Step(Structure):
    _fields_ = [
        ("query", c_void_p), ("key", c_void_p), ("value", c_void_p),
        ("query_strides", c_int64 * 2), ("key_strides", c_int64 * 2), ("value_strides", c_int64 * 2),
        ("keys", c_void_p), ("values", c_void_p), ("out", c_void_p), ("chunks", c_void_p),
        ("chunk_count", c_int64), ("heads", c_int64), ("group", c_int64),
        ("key_dim", c_int64), ("value_dim", c_int64), ("window", c_int64), ("scaling", c_float),
    ]  # fmt: skip


class _Rotated(Structure):
    _fields_ = [("states", c_void_p), ("strides", c_int64 * 2), ("out", c_void_p), ("heads", c_int64)]


class _Update(Structure):
    _fields_ = [
        ("first", c_int64), ("rows", c_int64), ("rank", c_int64),
        ("a", c_void_p), ("b", c_void_p), ("scaling", c_float),
    ]  # fmt: skip


class _Sampling(Structure):
    _fields_ = [
        ("top_k", c_int64), ("temperature", c_float), ("min_p", c_float), ("top_p", c_double), ("uniform", c_double),
    ]  # fmt: skip


class _Draws(Structure):
    _fields_ = [
        ("logits", c_void_p), ("weights", c_void_p), ("sizes", c_void_p), ("excluded", c_void_p),
        ("sampling", c_void_p), ("rows", c_int64), ("models", c_int64), ("shared", c_int64),
        ("excluded_count", c_int64), ("tokens", c_void_p), ("logprobs", c_void_p), ("scratch", c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class PackedWeight:
    """A weight matrix [features, inner] in the layout of linear.c."""

    panels: Tensor
    features: int
    inner: int


@dataclass(frozen=True)
class LowRankSegment:
    """Rows first..first+rows−1 of a step, and the packed update of the adapter that acts on them."""

    first: int
    rows: int
    a: PackedWeight
    b: PackedWeight
    scaling: float


@dataclass(frozen=True)
class RowSampling:
    """How a row's token is drawn; as SamplingParams, with the row's number in [0, 1)."""

    top_k: int
    temperature: float
    top_p: float
    min_p: float
    uniform: float


@cache
def kernels_for(device: torch.device, dtype: torch.dtype, isa: str | None = None) -> "Kernels | None":
    """The kernels for a device and a dtype; None where PyTorch's own are to be used.

    Args:
        isa: the instruction set, a name of `build.ISAS`; None: what PyTorch is held to.
    """
    if device.type != "cpu" or dtype not in DEFINES:
        return None
    loaded = library(DEFINES[dtype], isa)
    return None if loaded is None else Kernels(loaded, dtype)


def _dense_heads(states: Tensor) -> Tensor:
    return states if states.stride(-1) == 1 else states.contiguous()


class Kernels:
    """The compiled library for one dtype; every function runs on as many threads as PyTorch would."""

    def __init__(self, loaded: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.step: int = loaded.inner_step()
        """Inner dimensions must be a multiple of this."""
        self._factors = dtype if self.step * dtype.itemsize == 4 else torch.float32
        """What the rows of a matrix product are read as; bfloat16 only where the CPU multiplies it."""
        self._panel: int = loaded.panel_features()
        self._library = loaded
        pointer, size = c_void_p, c_int64
        loaded.pack.argtypes = [pointer, size, size, pointer]
        loaded.linear.argtypes = [pointer] * 4 + [size] * 3 + [c_int] * 2
        loaded.low_rank.argtypes = [pointer] * 4 + [POINTER(_Update)] + [size] * 4 + [c_int]
        loaded.rms_norm.argtypes = [pointer] * 3 + [size] * 2 + [c_float, c_int]
        loaded.silu_mul.argtypes = [pointer] * 3 + [size, c_int]
        loaded.rotate.argtypes = [POINTER(_Rotated), size, pointer, pointer, size, size, c_int]
        loaded.attend.argtypes = [POINTER(_Step), c_int]
        loaded.draw.argtypes = [POINTER(_Draws), c_int]
        loaded.score.argtypes = [pointer, size, size, pointer, size, pointer, c_int]

    def _as_factors(self, states: Tensor) -> Tensor:
        return states if states.dtype == self._factors else states.to(self._factors)

    def pack(self, weight: Tensor) -> PackedWeight:
        """Pack a weight [features, inner]."""
        weight = weight.detach().to(self.dtype).contiguous()
        features, inner = weight.shape
        panels = torch.empty(-(-features // self._panel) * self._panel * inner, dtype=self.dtype)
        self._library.pack(weight.data_ptr(), features, inner, panels.data_ptr())
        return PackedWeight(panels, features, inner)

    def linear(self, states: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor) -> None:
        """out = states · weightᵀ + bias.

        Args:
            states: [..., inner].
            bias: float32 [features].
            out: [..., features], dense; of the dtype, or float32.
        """
        states = self._as_factors(states).contiguous()
        rows, wide = states.numel() // weight.inner, out.dtype == torch.float32
        self._library.linear(
            states.data_ptr(), weight.panels.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(),
            rows, weight.inner, weight.features, wide, torch.get_num_threads(),
        )  # fmt: skip

    def add_low_rank(self, states: Tensor, out: Tensor, segments: Sequence[LowRankSegment]) -> None:
        """Add scaling · states · Aᵀ · Bᵀ to the rows of each segment.

        Args:
            states: [..., inner], dense.
            out: [..., features], dense; changed in place.
        """
        inner, features = states.shape[-1], out.shape[-1]
        rows, rank = states.numel() // inner, max(segment.a.features for segment in segments)
        states = self._as_factors(states)
        low, delta = states.new_empty(rows, rank), torch.empty_like(out)
        updates = (_Update * len(segments))(
            *(
                _Update(s.first, s.rows, s.a.features, s.a.panels.data_ptr(), s.b.panels.data_ptr(), s.scaling)
                for s in segments
            )
        )
        self._library.low_rank(
            states.data_ptr(), out.data_ptr(), low.data_ptr(), delta.data_ptr(), updates,
            len(segments), rank, inner, features, torch.get_num_threads(),
        )  # fmt: skip

    def rms_norm(self, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Root mean square normalisation of [..., dim]."""
        states = states.contiguous()
        out = torch.empty_like(states)
        dim = states.shape[-1]
        self._library.rms_norm(
            states.data_ptr(), weight.data_ptr(), out.data_ptr(), states.numel() // dim, dim, epsilon,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) · up, both dense."""
        out = torch.empty_like(gate)
        self._library.silu_mul(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel(), torch.get_num_threads())
        return out

    def rotate(self, tensors: Sequence[Tensor], cos: Tensor, sin: Tensor) -> list[Tensor]:
        """Rotary positions of queries and keys: states · cos + (−second half, first half) · sin.

        Args:
            tensors: [tokens, heads, dim] each, dim even.
            cos, sin: [tokens, dim], dense.

        Returns:
            The same shapes, dense.
        """
        tokens, dim = cos.shape
        tensors = [_dense_heads(states) for states in tensors]
        outs = [states.new_empty(states.shape) for states in tensors]
        rotated = (_Rotated * len(outs))(
            *(
                _Rotated(states.data_ptr(), states.stride()[:2], out.data_ptr(), states.shape[1])
                for states, out in zip(tensors, outs, strict=True)
            )
        )
        self._library.rotate(
            rotated, len(outs), cos.data_ptr(), sin.data_ptr(), tokens, dim, torch.get_num_threads()
        )  # fmt: skip
        return outs

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        chunks: Integers,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Write a step's keys and values to a layer's cache, and attend over it.

        Args:
            query: [tokens, query_heads, key_dim]; key: [tokens, heads, key_dim]; value: [tokens, heads, value_dim].
            keys, values: the layer's cache, in the layout of attention.c.
            chunks: first token, count, position, address of the block table; int64 [chunks, 4].

        Returns:
            [tokens, query_heads, value_dim].
        """
        query, key, value = _dense_heads(query), _dense_heads(key), _dense_heads(value)
        tokens, query_heads, key_dim = query.shape
        heads, value_dim = value.shape[1:]
        out = query.new_empty(tokens, query_heads, value_dim)
        step = _Step(
            query.data_ptr(), key.data_ptr(), value.data_ptr(),
            query.stride()[:2], key.stride()[:2], value.stride()[:2],
            keys.data_ptr(), values.data_ptr(), out.data_ptr(), chunks.ctypes.data,
            len(chunks), heads, query_heads // heads, key_dim, value_dim, window or 0, scaling,
        )  # fmt: skip
        self._library.attend(byref(step), torch.get_num_threads())
        return out

    def draw(
        self,
        logits: Sequence[Sequence[int]],
        weights: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
        sizes: Sequence[int],
        shared: int,
        excluded: Sequence[int],
        sampling: Sequence[RowSampling],
    ) -> "tuple[list[int], list[list[float]]]":
        """Draw a token for every row from the combined distribution.

        Args:
            logits: addresses of float32 logits, [rows][models]: the base's, then each ARM's.
            weights: [rows, models]; that of the base is 1.
            sizes: size of each model's vocabulary.
            shared: the ids below it are shared by all models.
            excluded: ids below `shared` that some model lacks.

        Returns:
            The tokens (−1: the row's logits are not finite); and for each row log π, then each model's log-softmax at
            the token.
        """
        rows, models, threads = len(logits), len(sizes), torch.get_num_threads()
        addresses = np.array(logits, dtype=np.int64)
        size_array, excluded_array = np.array(sizes, dtype=np.int64), np.array(excluded, dtype=np.int64)
        how = (_Sampling * rows)(*(_Sampling(s.top_k, s.temperature, s.min_p, s.top_p, s.uniform) for s in sampling))
        tokens, logprobs = np.empty(rows, np.int64), np.empty((rows, 1 + models), np.float64)
        scratch = torch.empty(threads * 2 * -(-shared // MOST_LANES) * MOST_LANES, dtype=torch.float32)
        draws = _Draws(
            addresses.ctypes.data, weights.ctypes.data, size_array.ctypes.data, excluded_array.ctypes.data,
            ctypes.addressof(how), rows, models, shared, len(excluded_array), tokens.ctypes.data,
            logprobs.ctypes.data, scratch.data_ptr(),
        )  # fmt: skip
        self._library.draw(byref(draws), threads)
        return tokens.tolist(), logprobs.tolist()

    def score(self, logits: Tensor, tokens: Sequence[int]) -> list[float]:
        """Log-softmax of each row at one token.

        Args:
            logits: float32 [rows, size], the last dimension dense.
            tokens: [rows].
        """
        rows, size = logits.shape
        token_array, logprobs = np.array(tokens, dtype=np.int64), np.empty(rows, np.float64)
        self._library.score(
            logits.data_ptr(), logits.stride(0), size, token_array.ctypes.data, rows, logprobs.ctypes.data,
            torch.get_num_threads(),
        )  # fmt: skip
        return logprobs.tolist()
