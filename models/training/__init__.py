"""Training of autoregressive reward models from preference pairs."""
