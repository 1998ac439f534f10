# Lamplighter. `make` lists what there is; each target first sets up what it needs.
#
# .tools  a virtual environment of python3.13 with pip (SAM asks for one on PATH) and uv
# .venv   what uv.lock says: the tests' and tools' packages and the local AWS

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.9
CHECKOV_VERSION := 3.3.30
REQUIREMENTS := layers/dependencies/requirements.txt

# Bytecode is what makes the second start fast, and a foreign virtual environment must not redirect uv.
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV PYTHONPATH PYTHONHOME
export PATH := $(CURDIR)/.tools/bin:$(CURDIR)/.venv/bin:$(PATH)
export SAM_CLI_TELEMETRY := 0
export UV_PYTHON_DOWNLOADS := never

PY := .venv/bin/python

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: .venv/stamp  ## Bring the local AWS up, deploy, fill demo data, run the main jobs and show what they did
	@$(PY) -m local.demo

.PHONY: up
up: .venv/stamp  ## Start the local AWS and deploy into it; it stays up (LOCAL_PORT=4610: the first of its three ports)
	@$(PY) -m local.stack up

.PHONY: down
down: .venv/stamp  ## Stop the local AWS and forget its data
	@$(PY) -m local.stack down

# Two processes halve what takes no more than itself; the end-to-end tests share one deployed stack, and run alone.
.PHONY: test
test: .venv/stamp  ## Run every test that needs no Docker
	@$(PY) -m pytest --numprocesses 2 --dist loadfile tests/unit tests/integration tests/template
	@$(PY) -m pytest tests/e2e

.PHONY: test-sam-local
test-sam-local: .venv/stamp  ## Run every sample event through `sam local invoke` (needs Docker)
	@$(PY) -m pytest tests/sam_local

.PHONY: check
check: .venv/stamp  ## Lint and type-check the code, lint the templates, compare the layer with uv.lock
	ruff check .
	ruff format --check .
	mypy -p lamplighter -p local
	cfn-lint template.yaml docs/member-account-role.yaml
	sam validate --lint --region us-east-1
	uv tool run --quiet --python "$$(realpath .tools/bin/python3.13)" checkov==$(CHECKOV_VERSION) --config-file .checkov.yaml
	@$(EXPORT) --output-file .tools/requirements.txt && diff -u $(REQUIREMENTS) .tools/requirements.txt || \
	  { echo "$(REQUIREMENTS) is not what uv.lock says: run make layer and commit it." >&2; exit 1; }

.PHONY: bench
bench: .venv/stamp  ## Measure the claims of docs/ against peers and floors
	@$(PY) -m bench

.PHONY: mutants
mutants: .venv/stamp  ## Break each guard of the code in turn, and see that a test fails (ONLY=name, SEED=number)
	@$(PY) -m tests.mutants $(if $(ONLY),--only "$(ONLY)" --random 0) $(if $(SEED),--seed $(SEED))

EXPORT = uv export --quiet --frozen --no-default-groups --no-emit-project --no-header

.PHONY: layer
layer: .venv/stamp  ## Export the layer's requirements from uv.lock
	$(EXPORT) --output-file $(REQUIREMENTS)

.PHONY: clean
clean:  ## Stop the local AWS and remove all that was built
	@if [ -x $(PY) ]; then $(PY) -m local.stack down; fi
	rm -rf .local .aws-sam .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/stamp: uv.lock .tools/stamp
	@[ -x $(PY) ] || uv venv --quiet --no-project --python "$$(realpath .tools/bin/python3.13)" .venv
	@uv sync --quiet --frozen
	@touch $@

# A pyenv shim named python3.13 may exist and fail, so each candidate is tried by running it. With no 3.13 at all, uv fetches one.
.tools/stamp:
	@for python in "$${PYTHON:-}" python3.13 python3 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13*/bin/python3.13; do \
	  if [ -n "$$python" ] && "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then \
	    "$$python" -m venv --clear .tools; break; \
	  fi; \
	done
	@if [ ! -x .tools/bin/python3.13 ]; then \
	  fetch=$$(mktemp -d); trap 'rm -rf "$$fetch"' EXIT; \
	  { python3 -m venv "$$fetch" && "$$fetch/bin/pip" install --quiet uv==$(UV_VERSION) && \
	    UV_PYTHON_DOWNLOADS=automatic "$$fetch/bin/uv" venv --quiet --seed --clear --python 3.13 .tools; } || \
	  { echo "Python 3.13 was neither found nor fetched. Install it, or name one: make PYTHON=/path/to/python3.13" >&2; exit 1; }; \
	fi
	@.tools/bin/python3.13 -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@
