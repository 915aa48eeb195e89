# `make demo` shows the tool, `make test` checks it; both set up .venv first if need be.
VENV := .venv
OLDEST := .venv-oldest
ifeq ($(OS),Windows_NT)
# make and sh come with Git for Windows or MSYS2.
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: help install demo test lint types layers unit test-fast cover format docs figures bench evidence merging packing speed faults fuzz oldest clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A venv may bring a pip that does not know dependency groups. torch comes alone: with it in place
# nothing else can pull another build of it. timm, k-diffusion and mmengine come without what they
# need: the tests use a few of their files, torchvision is there for CUDA only, and OpenCV is large.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) pip
	$(INSTALL) torch
	$(INSTALL) -e . --group dev
	$(INSTALL) --no-deps timm k-diffusion mmengine
	@touch $@

install: $(STAMP) ## set up .venv

demo: $(STAMP) ## train a small model, synthesize --gamma 7, compare with the truth, sweep the EMA length
	@$(BIN)/phema demo demo --force
	@echo; echo '$$ phema inspect demo/ckpts'; $(BIN)/phema inspect demo/ckpts
	@echo; echo '$$ phema synthesize --gamma 7 demo/ckpts -o demo/gamma7.safetensors --overwrite'
	@$(BIN)/phema synthesize --gamma 7 demo/ckpts -o demo/gamma7.safetensors --overwrite
	@echo; echo '$$ phema diff demo/truth/demo-step*-gamma7.safetensors demo/gamma7.safetensors --tolerance 1e-3'
	@$(BIN)/phema diff demo/truth/demo-step*-gamma7.safetensors demo/gamma7.safetensors --tolerance 1e-3
	@echo; echo "\$$ phema sweep demo/ckpts --eval '$(BIN)/python demo/validate.py {path}' -o demo/sweep --overwrite --plot demo/sweep.svg"
	@$(BIN)/phema sweep demo/ckpts --eval '$(BIN)/python demo/validate.py {path}' -o demo/sweep --overwrite --plot demo/sweep.svg

test: $(STAMP) ## lint, types, layers and the whole test suite
# Types are checked by one process, and two start the tests: they run beside each other.
	$(MAKE) --jobs=2 lint types layers unit

lint: $(STAMP) ## ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/python -m mypy

layers: $(STAMP) ## the import directions
	$(BIN)/lint-imports

unit: $(STAMP) ## the tests alone
	$(BIN)/python -m pytest -n $(WORKERS)

test-fast: $(STAMP) ## the tests without those that start Python anew, train models, draw or sweep sizes
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

cover: $(STAMP) ## the tests with branch coverage
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term

format: $(STAMP) ## rewrite the code in the house format
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(STAMP) ## write docs/cli.md from the commands' own help, run the notebook, build site/
	$(BIN)/python -m tests.reference > docs/cli.md
	$(BIN)/python -m tests.notebook
	$(BIN)/python -m sphinx --quiet --fail-on-warning --nitpicky docs site

figures: $(STAMP) ## draw the figures of docs/maths.md and docs/plot.md
	$(BIN)/python docs/toy.py
	$(BIN)/phema demo demo --force
	$(BIN)/phema plot --gamma 7 demo/ckpts -o docs/plot.svg --overwrite
	$(BIN)/phema plot --gamma 4,30 demo/ckpts -o docs/plot-targets.svg --overwrite

bench: $(STAMP) ## measure fidelity on real training runs (15 minutes), write docs/fidelity.md
	$(BIN)/python -m benchmarks.fidelity

evidence: $(STAMP) ## test right and wrong tags on real training runs (an hour and a half), write docs/evidence.md
	$(BIN)/python -m benchmarks.evidence

merging: $(STAMP) ## measure merged checkpoints against a decayed learning rate (10 minutes), write docs/merging-measured.md
	$(BIN)/python -m benchmarks.decay

packing: $(STAMP) ## measure packed snapshots on real training runs (half an hour, 6 GB), write docs/packing-measured.md
	$(BIN)/python -m benchmarks.packing

speed: $(STAMP) ## measure speed and memory (a quarter of an hour, 20 GB), write docs/performance.md
	$(BIN)/python -m benchmarks.speed

faults: $(STAMP) ## kill a synthesis 100 times, interrupt it 200 times, fail 100 system calls, and go on (30 minutes)
	PHEMA_KILLS=100 PHEMA_INTERRUPTIONS=200 PHEMA_FAULTS=100 PHEMA_STRIDE=1 $(BIN)/python -m pytest -s tests/test_faults.py tests/test_interruptions.py tests/test_injected_faults.py tests/test_power_loss.py tests/test_pack.py tests/test_packing_tracker.py

fuzz: $(STAMP) ## 1.8 million inputs made up for all parsers, guided by coverage (15 minutes)
	$(INSTALL) --group fuzz
	$(BIN)/python -m tests.fuzz

oldest: ## the README's first commands with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[plot]' \
		$$(sed -nE 's/^    "(numpy|rich|safetensors|typer)>=(.*)",/\1==\2/p' pyproject.toml)
	$(MAKE) -o $(STAMP) demo BIN=$(OLDEST)/bin

clean: ## remove .venv and what the demo and the tests left
	rm -rf $(VENV) $(OLDEST) demo site .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis fuzz-*
