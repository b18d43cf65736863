# One environment in .venv, made on first use; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
FEDERATION_DIR ?= runs/federation
FEDERATION_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo federation test test-long lint clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.run ## eight synthetic hospitals, the whole federated study, a report
	@$(BIN)/dsan-simulate run --preset demo $(DEMO_ARGS)

federation: $(VENV)/.run ## a centre and eight hospitals over TLS on this machine, by their own commands
	@$(BIN)/dsan-simulate federation $(FEDERATION_DIR) $(FEDERATION_ARGS)

test: $(VENV)/.dev ## the tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not long"

test-long: $(VENV)/.dev ## the tests that take minutes: plans, a hostile site, kills, a watched federation
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -m long

lint: $(VENV)/.dev ## format, style, types and layering
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: ## remove the environment and everything that was made
	rm -rf $(VENV) build *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/pip:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed: on Debian, install python3-venv"; exit 1; }

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing dsan-federated into $(VENV) (a minute or two; torch is large)"
	@$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing dsan-federated and its test tools into $(VENV) (a minute or two; torch is large)"
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev,ray,pacs,onnx,lungmask]'
	@touch $@ $(VENV)/.run
