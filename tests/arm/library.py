"""The kernels compiled for Arm, behind the interface of a loaded library, run by qemu-user in a process of its own.

What a call's addresses point to is copied to memory that both processes share, and back after the call. How many bytes
that are follows from the call's numbers, as in the C files.
"""

import ctypes
import mmap
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models.native
from models.native import kernels as native
from models.native.build import FLAGS
from tests.children import child

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PLACE, SIZE = 0x1000_0000_0000, 2**28
"""Of the shared memory in the kernels' process."""
BLOCK, ALIGNMENT, FLOAT, INT64 = native.BLOCK, 64, 4, 8
SERVER = Path(__file__).parent / "server.c"
SOURCES = sorted(Path(models.native.__file__).parent.glob("*.c"))


def compiled(dtype: torch.dtype, folder: Path) -> Path:
    """A program that runs the kernels for a dtype."""
    program = folder / f"kernels-{dtype}"
    define = [f"-D{name}"] if (name := native.DEFINES[dtype]) else []
    flags = [flag for flag in FLAGS if flag not in {"-march=native", "-fPIC"}]
    command = [COMPILER, *define, *flags, "-static", str(SERVER), *map(str, SOURCES), "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    return program


class Shared:
    """Copies of one call's memory, at addresses that the kernels' process knows."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._used = 0
        self._copies: list[tuple[int, int, int]] = []

    def place(self, address: int | None, size: int) -> int:
        """Where a copy of this memory is; 0 for no memory."""
        if not address:
            return 0
        at = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        assert self._used <= SIZE
        ctypes.memmove(self._base + at, address, size)
        self._copies.append((address, at, size))
        return PLACE + at

    def place_array(self, values: "np.ndarray[Any, Any]") -> int:
        """The same for numbers that are only read."""
        kept = np.ascontiguousarray(values)
        at = self.place(kept.ctypes.data, kept.nbytes)
        self._copies.pop()
        return at

    def place_structures(self, structures: list[ctypes.Structure]) -> int:
        """The same for structures that are only read."""
        return self.place_array(np.frombuffer(b"".join(map(bytes, structures)), np.uint8))

    def copy_back(self) -> None:
        """What the call wrote."""
        for address, at, size in self._copies:
            ctypes.memmove(address, self._base + at, size)


def array_at(address: int, count: int, kind: Any = ctypes.c_int64) -> "np.ndarray[Any, Any]":
    """Numbers somewhere in this process's memory."""
    return np.ctypeslib.as_array((kind * count).from_address(address)) if count else np.empty(0, np.int64)


class ArmLibrary:
    """Stands for the ctypes.CDLL of a dtype."""

    def __init__(self, dtype: torch.dtype, folder: Path) -> None:
        self._elem = dtype.itemsize
        with (folder / f"memory-{dtype}").open("w+b") as file:
            file.truncate(SIZE)
            self._memory = mmap.mmap(file.fileno(), SIZE)
            command = [EMULATOR, str(compiled(dtype, folder)), file.name, str(SIZE), str(PLACE)]
        self._running = ExitStack()
        self._process = self._running.enter_context(
            child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self._step, self._panel = self._ask("inner_step"), self._ask("panel_features")

    def close(self) -> None:
        """End the kernels' process."""
        self._running.close()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            shared = Shared(self._memory)
            marshal = getattr(type(self), f"_{name}_arguments", None)
            answer = self._ask(name, *(marshal(self, shared, *arguments) if marshal else ()))
            shared.copy_back()
            return answer

        setattr(self, name, call)  # one object, which also takes `argtypes`
        return call

    def _ask(self, name: str, *arguments: int) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(" ".join([name, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{name} ended the process with {self._process.wait()}"
        return int(answer)

    def _panels(self, features: int, inner: int) -> int:
        return -(-features // self._panel) * self._panel * inner * self._elem

    def _factors(self, rows: int, inner: int) -> int:
        return rows * inner // self._step * 4

    def _pack_arguments(self, shared: Shared, weight: int, features: int, inner: int, packed: int) -> Iterator[int]:
        yield shared.place(weight, features * inner * self._elem)
        yield from (features, inner)
        yield shared.place(packed, self._panels(features, inner))

    def _linear_arguments(
        self, shared: Shared, states: int, weight: int, bias: int | None, out: int, *sizes: int
    ) -> Iterator[int]:
        rows, inner, features, wide, _ = sizes
        yield shared.place(states, self._factors(rows, inner))
        yield shared.place(weight, self._panels(features, inner))
        yield shared.place(bias, features * FLOAT)
        yield shared.place(out, rows * features * (FLOAT if wide else self._elem))
        yield from map(int, sizes)

    def _low_rank_arguments(
        self, shared: Shared, states: int, out: int, low: int, delta: int, updates: Any, *sizes: int
    ) -> Iterator[int]:
        _, rank, inner, features, _ = sizes
        rows = max(update.first + update.rows for update in updates)
        yield shared.place(states, self._factors(rows, inner))
        yield shared.place(out, rows * features * self._elem)
        yield shared.place(low, self._factors(rows, rank))
        yield shared.place(delta, rows * features * self._elem)
        placed = []
        for update in updates:
            a = shared.place(update.a, self._panels(update.rank, inner))
            b = shared.place(update.b, self._panels(features, update.rank))
            placed.append(native._Update(update.first, update.rows, update.rank, a, b, update.scaling))
        yield shared.place_structures(placed)
        yield from sizes

    def _rms_norm_arguments(
        self, shared: Shared, states: int, weight: int, out: int, rows: int, dim: int, epsilon: float, threads: int
    ) -> Iterator[int]:
        yield shared.place(states, rows * dim * self._elem)
        yield shared.place(weight, dim * self._elem)
        yield shared.place(out, rows * dim * self._elem)
        yield from (rows, dim, int(np.float32(epsilon).view(np.uint32)), threads)

    def _silu_mul_arguments(
        self, shared: Shared, gate: int, up: int, out: int, count: int, threads: int
    ) -> Iterator[int]:
        for address in (gate, up, out):
            yield shared.place(address, count * self._elem)
        yield from (count, threads)

    def _heads(self, shared: Shared, address: int, tokens: int, strides: Any, heads: int, dim: int) -> int:
        last = (tokens - 1) * strides[0] + (heads - 1) * strides[1]
        return shared.place(address, (last + dim) * self._elem)

    def _rotate_arguments(
        self, shared: Shared, tensors: Any, count: int, cos: int, sin: int, tokens: int, dim: int, threads: int
    ) -> Iterator[int]:
        placed = []
        for one in tensors:
            states = self._heads(shared, one.states, tokens, one.strides, one.heads, dim)
            out = shared.place(one.out, tokens * one.heads * dim * self._elem)
            placed.append(native._Rotated(states, one.strides, out, one.heads))
        yield shared.place_structures(placed)
        yield count
        yield shared.place(cos, tokens * dim * self._elem)
        yield shared.place(sin, tokens * dim * self._elem)
        yield from (tokens, dim, threads)

    def _attend_arguments(self, shared: Shared, reference: Any, threads: int) -> Iterator[int]:
        s = native._Step.from_buffer_copy(reference._obj)
        chunks = array_at(s.chunks, s.chunk_count * 4).reshape(-1, 4).copy()
        tokens, most = int((chunks[:, 0] + chunks[:, 1]).max()), 0
        for chunk in chunks:
            table = array_at(int(chunk[3]), int(chunk[1] + chunk[2] - 1) // BLOCK + 1)
            chunk[3], most = shared.place_array(table), max(most, int(table.max()))
        cached = (most + 1) * s.heads * BLOCK
        s.query = self._heads(shared, s.query, tokens, s.query_strides, s.heads * s.group, s.key_dim)
        s.key = self._heads(shared, s.key, tokens, s.key_strides, s.heads, s.key_dim)
        s.value = self._heads(shared, s.value, tokens, s.value_strides, s.heads, s.value_dim)
        s.keys = shared.place(s.keys, cached * s.key_dim * self._elem)
        s.values = shared.place(s.values, (cached * s.value_dim + BLOCK) * self._elem)
        s.out = shared.place(s.out, tokens * s.heads * s.group * s.value_dim * self._elem)
        s.chunks = shared.place_array(chunks)
        yield shared.place_structures([s])
        yield threads

    def _draw_arguments(self, shared: Shared, reference: Any, threads: int) -> Iterator[int]:
        d = native._Draws.from_buffer_copy(reference._obj)
        sizes = array_at(d.sizes, d.models)
        addresses = array_at(d.logits, d.rows * d.models)
        placed = [shared.place(int(one), int(sizes[i % d.models]) * FLOAT) for i, one in enumerate(addresses)]
        width = -(-d.shared // native.MOST_LANES) * native.MOST_LANES
        d.logits = shared.place_array(np.array(placed, np.int64))
        d.weights = shared.place(d.weights, d.rows * d.models * FLOAT)
        d.excluded = shared.place(d.excluded, d.excluded_count * INT64) if d.excluded_count else 0
        d.sampling = shared.place(d.sampling, d.rows * ctypes.sizeof(native._Sampling))
        d.tokens = shared.place(d.tokens, d.rows * INT64)
        d.logprobs = shared.place(d.logprobs, d.rows * (1 + d.models) * INT64)
        d.scratch = shared.place(d.scratch, threads * 2 * width * FLOAT)
        d.sizes = shared.place_array(sizes)
        yield shared.place_structures([d])
        yield threads

    def _score_arguments(
        self, shared: Shared, logits: int, stride: int, size: int, tokens: int, rows: int, logprobs: int, threads: int
    ) -> Iterator[int]:
        yield shared.place(logits, ((rows - 1) * stride + size) * FLOAT)
        yield from (stride, size)
        yield shared.place(tokens, rows * INT64)
        yield rows
        yield shared.place(logprobs, rows * INT64)
        yield threads
