# Every target sets up .venv itself the first time.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
export TORCH_EXTENSIONS_DIR ?= $(abspath $(VENV))/torch_extensions
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help install demo openclipart table1 itm-start check test test-slow chaos-ingest chaos-train chaos-long clean

help:
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## set up .venv (about 7 GB with torch)

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard shards/pixels/*.c)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,spark,ray]'
	touch $(STAMP)

demo: $(STAMP)  ## pictures -> shards -> training -> report, about 10 minutes on 2 cores
	$(BIN)/albef run pipeline/configs/demo.yaml

openclipart: $(STAMP)  ## the same stages on 6,000 real, public domain pictures
	$(BIN)/albef run pipeline/configs/openclipart.yaml --figures docs/benchmarks/openclipart.json

table1: $(STAMP)  ## the paper's Table 1 on the embedded world, 15 runs; goes on where it stopped
	$(BIN)/albef study table1 pipeline/configs/table1_scenes.yaml --docs docs

itm-start: $(STAMP)  ## what makes ITM start, 12 runs on the demo's world; goes on where it stopped
	$(BIN)/albef study itm-start pipeline/configs/demo.yaml --docs docs

check: $(STAMP)  ## formatting, lint, types, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)  ## the tests that need more time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

chaos-ingest: $(STAMP)  ## kill -9 of ingest's processes 200 times, half of them on S3; 40 minutes
	CHAOS_KILLS=100 CHAOS_JSON=docs/benchmarks/chaos_ingest.json $(BIN)/python -m pytest tests/ingest/test_kills.py -m slow -s --timeout 14400

chaos-train: $(STAMP)  ## kill -9 of whole training runs 50 times, on disk, on a failing S3 and of two ranks; a quarter to half an hour
	CHAOS_KILLS=$${CHAOS_KILLS:-50} CHAOS_JSON=docs/benchmarks/chaos_train.json $(BIN)/python -m pytest tests/training/test_kills.py -m slow -s --timeout 14400

chaos-long: $(STAMP)  ## 2,000 steps of the demo's model on two ranks through kills, S3 faults, stalls and a full disk; needs runs/demo; about an hour
	CHAOS_DEMO=runs/demo CHAOS_JSON=docs/benchmarks/chaos_long.json $(BIN)/python -m pytest tests/training/test_long_run.py -m slow -s --timeout 14400

clean:  ## remove runs and caches, keep .venv
	rm -rf runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
