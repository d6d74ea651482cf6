"""The command line, `genarm`: one file per command group."""
