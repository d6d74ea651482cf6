"""`python -m worker.cli`: the command line `genarm`, for launchers that start a module (accelerate)."""

from worker.cli import main

if __name__ == "__main__":
    main(prog_name="genarm")
