"""What libraries say that no user can do anything about is silent, by name; all else that they warn of stays."""

import logging
import os
import re
import warnings

LOGGERS = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""They warn as they are imported: of kernels for other machines, and of each other's versions."""
WARNINGS: dict[str, type[Warning]] = {
    "`is_gradient_checkpointing` is deprecated": FutureWarning,  # transformers, of PEFT
    "The PEFT config's `base_model_name_or_path` was renamed": UserWarning,  # PEFT, of an adapter on a base of its name
}
"""How a message begins that libraries write about each other's code, and its category."""


def hush() -> None:
    """Silence them in this process, once it starts; before torch and transformers are imported."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for beginning, category in WARNINGS.items():
        warnings.filterwarnings("ignore", re.escape(beginning), category)


def hush_bars() -> None:
    """Let libraries draw no progress bars, where nobody watches a terminal; before they are imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # a .gguf conversion
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers too
