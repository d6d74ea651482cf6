"""What went wrong on a device: out of memory (recoverable), or the device is lost (restart required)."""

import errno

import torch

OUT_OF_MEMORY = (
    "out of memory",  # CUDA and HIP, by PyTorch's allocator, their runtimes, drivers and libraries
    "can't allocate memory",  # PyTorch's CPU allocator
    "not enough memory",  # the same on macOS and Windows
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSPARSE, cuSOLVER
    "ALLOCATION_FAILED",  # cuDNN 9 says whose
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # it allocates a workspace
)
"""What is in the message of a RuntimeError, which most of these are."""
CUDA_MEMORY_ALLOCATION = 2
"""`cudaErrorMemoryAllocation`, as an AcceleratorError has it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of the host or a device.

    A lost device may give such errors too: ask `is_lost` first.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    message = str(error)
    is_named = any(text in message for text in OUT_OF_MEMORY)
    return is_named or getattr(error, "error_code", None) == CUDA_MEMORY_ALLOCATION


def is_lost(device: torch.device) -> bool:
    """Whether all that a device is asked for fails, as after a kernel that wrote where it may not."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False
