"""How fast linear layers are on this CPU: by our kernels and by PyTorch, in float32 and bfloat16."""

import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from models.native.kernels import DEFINES, kernels_for

ROWS = (1, 8, 64)
"""Of the products: a sequence alone, a few, a full batch."""
FEATURES = 1024
MATRICES = 8
"""More weights than most caches hold, as those of a model are."""
ROUNDS = 12
SECONDS = 0.007
"""Of each product in each round. The best round counts, and so short a one is seldom disturbed."""

Product = Callable[[int, torch.Tensor], Any]


def measure_speeds() -> dict[str, float]:
    """Measure products on one thread, in its own CPU time, which other processes take little from.

    Returns:
        GFLOP/s by `native float32`, `torch bfloat16` and so on, geometric means over ROWS. Our kernels are left out
        where they cannot be compiled.
    """
    with ThreadPoolExecutor(1) as thread:  # PyTorch keeps its number of threads for each thread apart
        return thread.submit(_on_one_thread).result()


def _on_one_thread() -> dict[str, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _speeds()
    finally:
        torch.set_num_threads(threads)


def _speeds() -> dict[str, float]:
    products = {name: product for dtype in DEFINES for name, product in _products(dtype).items()}
    best = dict.fromkeys(itertools.product(products, ROWS), 0.0)
    for _ in range(ROUNDS):
        for name, rows in best:
            states = torch.full((rows, FEATURES), 0.01, dtype=getattr(torch, name.split()[1]))
            best[name, rows] = max(best[name, rows], _speed(products[name], states))
    return {name: math.prod(best[name, rows] for rows in ROWS) ** (1 / len(ROWS)) for name in products}


def _products(dtype: torch.dtype) -> dict[str, Product]:
    weights = [torch.full((FEATURES, FEATURES), 0.01, dtype=dtype) for _ in range(MATRICES)]
    name = str(dtype).removeprefix("torch.")
    products: dict[str, Product] = {
        f"torch {name}": lambda index, states: torch.nn.functional.linear(states, weights[index])
    }
    if (kernels := kernels_for(torch.device("cpu"), dtype)) is not None:
        packed = [kernels.pack(weight) for weight in weights]
        products[f"native {name}"] = lambda index, states: kernels.linear(
            states, packed[index], None, states.new_empty(states.shape)
        )
    return products


def _speed(product: Product, states: torch.Tensor) -> float:
    """GFLOP/s of products with one matrix after the other."""
    started, count = time.thread_time(), 0
    while (passed := time.thread_time() - started) < SECONDS or not count:
        product(count % MATRICES, states)
        count += 1
    return 2e-9 * count * states.shape[0] * FEATURES**2 / passed
