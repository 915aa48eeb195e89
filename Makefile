# `make demo` shows the tool, `make test` checks it; both set up .venv first if need be.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: help install demo test lint types layers unit cover format docs bench speed faults clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch comes first and alone: with it in place nothing else can pull another build of it. timm comes
# without what it needs: the tests use two of its files, and torchvision is there for CUDA only.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm
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

test: lint types layers cover ## lint, types, layers and the whole test suite with coverage

lint: $(STAMP) ## ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/python -m mypy

layers: $(STAMP) ## the import directions
	$(BIN)/lint-imports

unit: $(STAMP) ## the tests alone
	$(BIN)/python -m pytest -n $(WORKERS)

cover: $(STAMP) ## the tests with branch coverage
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term

format: $(STAMP) ## rewrite the code in the house format
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(STAMP) ## write docs/cli.md from the commands' own help
	$(BIN)/python -m tests.reference > docs/cli.md

bench: $(STAMP) ## measure fidelity on real training runs (15 minutes), write docs/fidelity.md
	$(BIN)/python -m benchmarks.fidelity

speed: $(STAMP) ## measure speed and memory (a quarter of an hour, 20 GB), write docs/performance.md
	$(BIN)/python -m benchmarks.speed

faults: $(STAMP) ## kill a synthesis at 100 random moments and go on (10 minutes)
	PHEMA_KILLS=100 $(BIN)/python -m pytest -s tests/test_faults.py -k kills

clean: ## remove .venv and what the demo and the tests left
	rm -rf $(VENV) demo .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
