"""What went wrong on a device."""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory."""
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
