"""The method: guided decoding of a base model with autoregressive reward models, and their training."""

import logging

for _library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)  # what they warn of as they are imported is no user's to mend
