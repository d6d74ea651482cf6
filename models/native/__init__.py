"""Kernels in C for the CPU: packed linear layers, attention over the block cache, the draw, and modules over them."""
