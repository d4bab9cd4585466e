# make demo | test | test-slow | lint | bench | clean.  VENV=... for another environment, PYTHON=... for another interpreter.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-slow lint bench clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(BIN)/python tools/demo.py --output demo

test: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not gpu"

# The rest: trainings of a minute or two, installing into a fresh environment, full real mosaics.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports

bench: $(STAMP)
	rm -rf bench
	$(BIN)/deepdisc simulate --config-file configs/sky/ugriz_ground_test.py --output bench/field --seed 777
	$(BIN)/deepdisc simulate --config-file configs/sky/ugriz_ground.py --output bench/train --seed 1 sky.workers=2
	$(BIN)/deepdisc predict bench/field/mosaic.yaml --model ugriz_r18 --score-threshold 0.05 --output bench/pred
	$(BIN)/deepdisc predict datasets/sdss_sample/mosaic.yaml --model ugriz_r18 --output bench/sdss
	$(BIN)/deepdisc predict bench/field/mosaic.yaml --model ugriz_r18 --output bench/simulated
	$(BIN)/python benchmarks/compare_detection.py benchmarks/detection.yaml --output bench/detection
	$(BIN)/python benchmarks/compare_photoz.py bench/train/recipe.yaml bench/field bench/pred/catalog.parquet --output bench
	$(BIN)/python benchmarks/memory.py --model ugriz_r18
	$(BIN)/python benchmarks/compare_speed.py --output bench
	$(BIN)/python benchmarks/compare_simulation.py --output bench
	$(BIN)/python benchmarks/compare_matching.py --output bench
	$(BIN)/deepdisc prepare bench/train/recipe.yaml --output bench/dataset --split train=0.96,val=0.04
	$(BIN)/python benchmarks/compare_mask_heads.py bench/dataset bench/field --output bench/mask_heads

# uv installs in a third of pip's time; without --compile-bytecode each first import of torch costs seconds.
$(STAMP): setup.py constraints.txt
	@if uv --version >/dev/null 2>&1; then \
		[ -x $(BIN)/python ] || uv venv --quiet --python $(PYTHON) $(VENV); \
		uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable ".[dev]"; \
	else \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip install --quiet --compile --constraint constraints.txt --editable ".[dev]"; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) demo bench build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
