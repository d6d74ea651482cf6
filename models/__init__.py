"""The method: guided decoding of a base model with autoregressive reward models, and their training."""
