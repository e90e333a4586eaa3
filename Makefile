# Every target sets up what it needs, once. To use an active virtual or conda environment instead:
#   make run VENV=$VIRTUAL_ENV      make run VENV=$CONDA_PREFIX
PYTHON ?= python3
VENV ?= .venv
BIN := $(if $(VENV),$(VENV),$(error VENV is empty: name an environment, or leave VENV out))/bin
ARGS ?=
CASES ?= 10000

export TF_CPP_MIN_LOG_LEVEL = 3

# What is kept in git comes from real data.
REAL_DATA := from cam_helpers import data; \
	data.fashion_mnist().source == "Fashion-MNIST" or exit("this needs Fashion-MNIST: go online")

ifeq ($(VENV),.venv)
READY := .venv/ready
else
READY := packages
endif

.DEFAULT_GOAL := help
.PHONY: help run test lint unit smoke check notebooks site bench peers league fuzz models audit badges \
	weights lock colab browser packages

help:  ## show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

run: $(READY)  ## run the notebooks into build/ (ARGS="--only 02", "--full", "--jobs 2")
	"$(BIN)/python" -m cam_helpers.tutorial $(ARGS)

test: lint unit  ## everything below, down to check
	"$(BIN)/python" -m pytest -n 2 --maxschedchunk=1 tests/test_notebooks.py

lint: $(READY)  ## style of code and notebooks
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/python" -m cam_helpers.badges --check

unit: $(READY)  ## tests of the helpers
	"$(BIN)/python" -m pytest -n 2 --ignore=tests/test_notebooks.py --ignore=tests/browser

smoke: $(READY)  ## each notebook with small parameters (papermill)
	"$(BIN)/python" -m pytest -n 2 --maxschedchunk=1 tests/test_notebooks.py -k "not stored"

check: $(READY)  ## stored outputs against a fresh run (nbval)
	"$(BIN)/python" -m pytest -n 2 --maxschedchunk=1 tests/test_notebooks.py -k stored

notebooks: badges  ## run the notebooks and store their outputs (nbconvert)
	@"$(BIN)/python" -c '$(REAL_DATA)'
	"$(BIN)/jupyter" nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	"$(BIN)/jupyter" nbconvert --to notebook --inplace --coalesce-streams \
		--Exporter.preprocessors=cam_helpers.stored_widgets.WithoutWidgets notebooks/*.ipynb
	cp build/gradcam_and_gradcam_plus_plus.png data/

site: $(READY)  ## the notebooks as stored and the reference as web pages, in build/site
	"$(BIN)/python" -m cam_helpers.site $(ARGS)

browser: $(READY) .venv-widgets7/ready  ## explorer and site in Chromium, which must be there
	"$(BIN)/python" -m pytest tests/browser

bench: $(READY)  ## how many forward passes a map costs, and how much memory; writes build/bench.json
	"$(BIN)/python" -m cam_helpers.bench

peers: .venv-peers/ready  ## maps and speed next to xplique's, which needs an environment of its own
	PYTHONPATH=. .venv-peers/bin/python tests/peers/run.py

league: $(READY)  ## measure which maps are true, again; writes data/league.csv and README's table
	"$(BIN)/python" -m cam_helpers.league $(ARGS)

fuzz: $(READY)  ## 10,000 hostile photos, arrays, requests and models (CASES=1000); make test has a hundred
	FUZZ_CASES=$(CASES) "$(BIN)/python" -m pytest -n 2 --hypothesis-show-statistics tests/test_fuzz_*.py

models: $(READY)  ## nine networks in five forms each, explained and checked; make test has three
	OWN_MODELS=all "$(BIN)/python" -m pytest -n 2 tests/test_own_models.py

audit: .venv-audit/ready  ## known weaknesses of the pinned packages (needs the network)
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

badges: $(READY)  ## write the repository's address into notebooks and README
	"$(BIN)/python" -m cam_helpers.badges

weights: $(READY)  ## train the committed networks for real and keep weights and log in data/
	@"$(BIN)/python" -c '$(REAL_DATA)'
	"$(BIN)/python" -m cam_helpers.tutorial --only 01 --full
	cp build/fashion_cnn/fashion_cnn.weights.h5 build/fashion_cnn/fashion_cnn.log.json data/
	"$(BIN)/python" -m cam_helpers.ground_truth

lock: $(READY)  ## pin the newest versions that pyproject.toml allows into requirements.lock
	"$(BIN)/python" -m pip install --quiet uv
	"$(BIN)/uv" pip compile --universal --python-version 3.11 --upgrade --no-header --no-emit-index-url \
		--extra dev pyproject.toml --output-file requirements.lock

colab:  ## run the notebooks with Colab's versions, from another folder (Python 3.13)
	tests/colab/run

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
		"expected Python 3.11 to 3.13, received %s.%s: name one, make PYTHON=python3.12 ..." \
		% sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

# xplique asks for TensorFlow with CUDA, so it comes without what it asks for.
.venv-peers/ready: tests/peers/requirements.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps xplique==2.0.2
	@touch $@

# Colab's ipywidgets: JupyterLab 3 shows them, and the kernel finds them before .venv's own.
.venv-widgets7/ready: tests/browser/requirements.txt
	$(PYTHON) -m venv --clear .venv-widgets7
	.venv-widgets7/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-widgets7/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-widgets7/kernel ipywidgets==7.7.1 ipython_genutils==0.2.0
	@touch $@

.venv-audit/ready:
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

packages:
	@"$(BIN)/python" -c 'import importlib.util as u, sys; \
		lacking = [n for n in ("tensorflow", "tf_keras_vis", "papermill", "nbval", "zarr", "ruff") \
			if u.find_spec(n) is None]; \
		sys.exit("$(VENV) lacks " + ", ".join(lacking) + \
			": pip install -r requirements.lock there, or run make without VENV" if lacking else 0)'
