"""The ledger: jobs, requests, shards, completions and token rewards in SQL."""
