"""What went wrong on a device: too little memory, which passes, or all of it, which only a new process mends."""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory."""
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def is_lost(device: torch.device) -> bool:
    """Whether all that a device is asked for fails, as after a kernel that wrote where it may not."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
