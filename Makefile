# Everything a reader does with this repository. `make` alone prints the list.
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v))) python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One figure alone is that of preset mini, as it is recorded.
PRESET ?= $(if $(filter figure1 figure2 theory beyond using,$(MAKECMDGOALS)),mini,quick)
# Presets mini and small take hours, so they are drawn as they are recorded; a STORE of its own trains them.
STORE  ?= $(if $(filter mini small,$(PRESET)),recorded,build/$(PRESET)/store)
RECORDED := $(filter recorded,$(STORE))
RUNS := $(if $(RECORDED),$(wildcard data/recorded/$(PRESET)/*/SHA256SUMS))
# Of recorded results every seed.
SEEDS  ?= $(if $(RECORDED),0,1)
# Whose runs figures 1 and 2 show.
PLANS  ?= nli paraphrase
# Runs at a time; by default one per core or GPU.
JOBS   ?=
# Folder of rows in XTREME layout, for presets of real rows; by default the Hub's.
DATA   ?=
PARAMS ?=
# Where figures go: committed are those of presets mini (figures/) and small (figures/small/) as they are recorded; others
# lie beside them, those of these presets and a store of one's own in figures/mini-own and figures/small-own.
FLATLINGO_FIGURES ?= $(abspath figures)
FIGURES = $(FLATLINGO_FIGURES)$(if $(filter mini-recorded,$(PRESET)-$(STORE)),,/$(PRESET)$(if $(filter mini small,$(PRESET)),$(if $(RECORDED),,-own)))
# What make installs: everything, at the versions of the lock.
INSTALL := -c requirements.lock -e '.[study,notebooks,dev]'

NOTEBOOKS := 0_start_here 1_theory 2_figure1 3_figure2 4_fisher_estimators 5_beyond_the_paper 6_using_the_trace explore
# What there is to draw of preset quick, which trains the two studies only, and of small without its encoder and rows.
STUDIES   := 2_figure1 3_figure2 $(if $(RECORDED),6_using_the_trace)
DRAWN     := $(patsubst %,build/$(PRESET)/%-$(SEEDS).ipynb,\
    $(if $(filter quick small-recorded,$(PRESET) $(PRESET)-$(STORE)),$(STUDIES),$(NOTEBOOKS)))
SOURCES   := $(wildcard src/flatlingo/*.py src/flatlingo/*/*.py src/flatlingo/*/*.tsv src/flatlingo/*/*.mplstyle \
    src/flatlingo/presets/$(PRESET).yaml src/flatlingo/presets/tasks/*.yaml \
    data/mini-mbert/*.safetensors data/mini-mbert/tokenizer.json)

export PATH := $(abspath $(BIN)):$(PATH)
export HF_HUB_DISABLE_PROGRESS_BARS ?= 1
export HF_DATASETS_DISABLE_PROGRESS_BARS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
# Runs and notebooks compute in one thread each; several on shared cores mostly wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup figures figures-mini figures-small figure1 figure2 theory beyond using test test-lab test-slurm lab pretrain record bench lint lock

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## install everything into .venv
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flatlingo needs Python 3.11 or newer: make setup PYTHON=...")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INSTALL)
	touch $@

# With preset quick also what is recorded: hours of training, drawn in seconds.
figures: build/$(PRESET)/figures-$(SEEDS) $(if $(filter quick,$(PRESET)),figures-mini figures-small) ## train what is missing and draw every figure (PRESET=quick, the default, smoke, mini, small, paper or xlmr; SEEDS=n, JOBS=n runs at a time); mini and small as recorded
figures-mini figures-small: $(STAMP)
	$(MAKE) --no-print-directory figures PRESET=$(@:figures-%=%) STORE=recorded SEEDS=0 DATA= PARAMS=
figure1: build/$(PRESET)/2_figure1-$(SEEDS).ipynb ## only English accuracy against Tr(F)
figure2: build/$(PRESET)/3_figure2-$(SEEDS).ipynb ## only the gain of the second stage against Tr(F)
theory: build/$(PRESET)/1_theory-$(SEEDS).ipynb ## only equation (1)
beyond: build/$(PRESET)/5_beyond_the_paper-$(SEEDS).ipynb ## only what the paper leaves open
using: build/$(PRESET)/6_using_the_trace-$(SEEDS).ipynb ## only what to do with a trace, from runs that are there

# What a notebook reads is swept before, of the plans that the preset has: hours that no kernel has to live through.
HAS   := $(shell sed -n '/^plans:/,$$ s/^  \([a-z_]*\):.*/\1/p' src/flatlingo/presets/$(PRESET).yaml /dev/null)
swept  = $(if $(RECORDED),,$(foreach plan,$(filter $(1),$(HAS)),build/$(PRESET)/$(plan)-$(SEEDS).swept))
SWEPT_2_figure1 := $(call swept,$(PLANS))
SWEPT_3_figure2 := $(call swept,$(PLANS))
SWEPT_5_beyond_the_paper := $(call swept,nli paraphrase regularized_second_stage)
# Notebook 6 computes nothing: it shows what is recorded, or what the store has when the others' plans are swept.
SWEPT_6_using_the_trace := $(SWEPT_5_beyond_the_paper)
SWEPT_explore := $(call swept,nli paraphrase)
SWEEP := --preset $(PRESET) --seeds $(SEEDS) --store $(STORE) $(if $(JOBS),--jobs $(JOBS)) $(if $(DATA),--data $(DATA)) \
    $(if $(filter quick smoke,$(PRESET)),,--discard-weights)
# What a notebook or a sweep is asked for besides, in a file that changes when it does (but not in a dry run, -n).
ASKED := build/$(PRESET)/asked-$(SEEDS)
$(ASKED): ;
$(if $(findstring n,$(firstword -$(MAKEFLAGS))),,$(shell mkdir -p $(dir $(ASKED)); \
    echo '$(STORE) $(PLANS) $(DATA) $(PARAMS)' > $(ASKED).new; \
    cmp -s $(ASKED).new $(ASKED) && rm $(ASKED).new || mv $(ASKED).new $(ASKED)))
.PRECIOUS: build/$(PRESET)/%-$(SEEDS).swept
build/$(PRESET)/%-$(SEEDS).swept: $(STAMP) $(SOURCES) $(ASKED)
	flatlingo sweep $* $(SWEEP)
	mkdir -p $(@D) && touch $@

# A notebook that fails does not keep the others from being drawn. Two targets at a time, except where they would share a
# GPU: theory and estimators keep one core busy, sweeps both.
MAKEFLAGS += -k $(if $(filter 0,$(MAKELEVEL)),$(if $(filter quick smoke,$(PRESET))$(RECORDED),-j2))

# The list of figures, made when any was drawn; a second call has nothing to do, and make says so.
UNRECORDED = $(if $(RECORDED),$(foreach plan,$(PLANS),$(if $(filter data/recorded/$(PRESET)/$(plan)-none-s1-%,$(RUNS)),,$(plan))))
build/$(PRESET)/figures-$(SEEDS): $(DRAWN)
	@$(foreach plan,$(UNRECORDED),echo "left out: plan $(plan) of preset $(PRESET) is not recorded";) ls $(FIGURES)/*.png | tee $@

# What a notebook is given besides the preset.
ARGS_1_theory  := $(if $(filter smoke,$(PRESET)),-p pairs=10 -p rows=64) $(if $(filter paper xlmr,$(PRESET)),-p pairs=30)
ARGS_4_fisher_estimators := $(if $(filter smoke,$(PRESET)),-p draws=4)
ARGS_runs := -p store=$(STORE) -p seeds=$(SEEDS)
ARGS_explore := $(ARGS_runs) $(if $(DATA),-p data=$(abspath $(DATA))) $(if $(filter smoke,$(PRESET)),-p epochs=1)
ARGS_2_figure1 := $(ARGS_runs) -p plans="$(PLANS)" $(if $(DATA),-p data=$(abspath $(DATA)))
ARGS_3_figure2 := $(ARGS_2_figure1)
ARGS_5_beyond_the_paper := $(ARGS_runs) $(if $(DATA),-p data=$(abspath $(DATA))) $(if $(filter smoke,$(PRESET)),-p studies=5)
ARGS_6_using_the_trace := $(ARGS_runs)
# What it reads besides.
READ_0_start_here := $(wildcard benchmarks/results/steps.json data/recorded/mini/methods-*/SHA256SUMS)
READ_2_figure1 := $(wildcard data/recorded/mini-regimes.csv)
# A notebook is executed under another name and moved when it succeeded, so that a failed one is built again.
.SECONDEXPANSION:
build/$(PRESET)/%-$(SEEDS).ipynb: notebooks/%.ipynb $(STAMP) $(SOURCES) $(RUNS) $(ASKED) $$(SWEPT_$$*) $$(READ_$$*)
	FLATLINGO_FIGURES=$(FIGURES) flatlingo notebook $< $@ -p preset=$(PRESET) $(ARGS_$*) $(PARAMS)

# Files in the order of tests/conftest.py, where the longest goes first.
test: $(STAMP) ## everything CI runs
	ruff check && ruff format --check
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --doctest-modules tests src
	FLATLINGO_FIGURES=$(abspath build/test-figures) python -m pytest -n 2 --dist loadfile \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout 300 $(NOTEBOOKS:%=notebooks/%.ipynb)

# A browser test needs Chromium and playwright, which nothing else does; without them it skips and says why.
BROWSER := $(VENV)/.browser
test-lab: $(BROWSER) ## every notebook run in JupyterLab by a real browser (installs Chromium as root; skips without)
	python -m pytest -rs tests/lab/in_browser.py
$(BROWSER): $(STAMP)
	if ! command -v chromium && command -v apt-get && test "$$(id -u)" = 0; then apt-get update -qq && \
	    apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core || true; fi
	python -m pip install --quiet --disable-pip-version-check playwright || true
	touch $@

test-slurm: $(STAMP) ## sweeps as array jobs of a real one-node SLURM (root and Debian packages; skips without)
	tests/slurm/one_node.sh build/slurm python -m pytest tests/slurm/array_jobs.py

lab: $(STAMP) ## JupyterLab on the notebooks, on this machine only
	jupyter lab --ip=127.0.0.1 --notebook-dir=notebooks

pretrain: $(STAMP) ## rebuild the shipped encoder data/mini-mbert (about an hour on one core)
	flatlingo pretrain --mini-world --output build/mini-mbert-1
	flatlingo pretrain --mini-world --start build/mini-mbert-1 --seed 1 --epochs 1 --output build/mini-mbert-2
	flatlingo pretrain --mini-world --start build/mini-mbert-2 --seed 2 --epochs 1 --claims 0.2 --output build/mini-mbert-3
	flatlingo pretrain --mini-world --start build/mini-mbert-3 --seed 3 --epochs 1 --claims 0.2 --output build/mini-mbert-4
	flatlingo pretrain --mini-world --start build/mini-mbert-4 --seed 4 --epochs 4 --claims 0.2 --output build/mini-mbert-5
	flatlingo pretrain --mini-world --start build/mini-mbert-5 --seed 5 --epochs 4 --claims 0.2 --output data/mini-mbert

# Plans of preset mini, the deciding ones first.
RECORD := nli paraphrase methods technique intervention regularized_second_stage
record: $(STAMP) ## train what the recorded results of preset mini lack (up to ten seeds of six plans: many hours), then refresh notebooks and figures
	for plan in $(RECORD); do \
	    flatlingo sweep $$plan --preset mini --store data/recorded/mini --discard-weights || exit 1; done
	python scripts/modelcard.py
	rm -rf build/reference
	for notebook in 2_figure1 3_figure2 5_beyond_the_paper; do \
	    FLATLINGO_FIGURES=$(abspath build/reference) flatlingo notebook notebooks/$$notebook.ipynb \
	        build/reference/$$notebook.ipynb -p preset=smoke -p store=build/reference/store -p seeds=1 \
	        $$(test $$notebook = 5_beyond_the_paper && echo -p studies=5); done
	cp build/reference/{figure1,figure2,beyond}.json tests/reference
	for notebook in $(NOTEBOOKS); do \
	    FLATLINGO_FIGURES=$(abspath figures) flatlingo notebook notebooks/$$notebook.ipynb notebooks/$$notebook.ipynb; done
	test -z "$(wildcard data/recorded/small/*-none-s1-*)" || \
	    $(MAKE) figures PRESET=small
	python scripts/readme.py

PEERS := build/peers-venv
bench: $(PEERS)/.installed ## compare time, memory and error with other packages; for a quiet machine
	$(PEERS)/bin/python benchmarks/trace.py
	$(PEERS)/bin/python benchmarks/penalties.py
	$(PEERS)/bin/python benchmarks/steps.py
# All of them or none: the committed report compares with every one.
$(PEERS)/.installed: benchmarks/requirements-peers.txt $(STAMP)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(INSTALL)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

AUDIT := build/audit-venv
lint: $(STAMP) $(AUDIT)/.installed ## ruff on code and notebooks; known vulnerabilities of the locked packages
	ruff check && ruff format --check
	$(AUDIT)/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --progress-spinner off
$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	touch $@

lock: $(STAMP) ## resolve the packages of pyproject.toml anew into requirements.lock
	$(BIN)/python -m pip install --quiet uv
	uv pip compile pyproject.toml --all-extras --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --no-header --no-annotate -o requirements.lock
