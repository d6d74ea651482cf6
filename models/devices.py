"""What PyTorch must be set to while models run on a device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current one and leave cuDNN's attention out; afterwards all is as it was.

    Graphs, pinned memory and Triton use the current device, which is the first one otherwise. cuDNN makes a plan for
    each new shape of attention (68 ms each on an H200), and nearly every chunk of a prompt has a new shape.
    """
    if device.type != "cuda":
        yield
        return
    with_cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(with_cudnn)
