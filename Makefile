# `make demo` shows a job on a real cluster, `make test` runs all tests; both install what they need.
# The other targets are for working on the project.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most tests wait for something, so more of them than cores run at a time.
WORKERS := 4
# Each of them imports all tests: with bytecode kept, in a third of the time.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --durations=30

# Rebuilt when the files it depends on change.
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint unit integration e2e bench simulate crds openapi settings constraints cluster-up cluster-down deploy images dist clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[results,gateway,dev,demo]'
	touch $@

demo: $(READY) ## Make thumbnails of real photographs with a pool that grows from zero
	$(BIN)/python -m examples.thumbnails.demo

test: lint $(READY) ## Lint, then all tests: unit, integration and end to end on a real cluster
	$(PYTEST)

test-long: $(READY) ## Run the tests that take long by nature
	$(PYTEST) -m long

lint: $(READY) ## Format check, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(READY) ## Run only the tests that need no cluster
	$(PYTEST) tests/unit

integration: $(READY) ## Test single parts against a real API server and RabbitMQ
	$(PYTEST) tests/integration

e2e: $(READY) ## Test the whole system with real pods
	$(PYTEST) tests/e2e

bench: $(READY) ## Measure throughput, latency, cold start, workers and scaling on the cluster
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.bench throughput
	$(BIN)/python -m tests.bench batch --items 20000
	$(BIN)/python -m tests.bench latency
	$(BIN)/python -m tests.bench coldstart
	$(BIN)/python -m tests.bench worker
	$(BIN)/python -m tests.bench publish
	$(BIN)/python -m tests.bench scaling

simulate: $(READY) ## Compare our scaling with KEDA's in virtual time
	$(BIN)/python -m tests.simulation

crds: $(READY) ## Write crds/ and the API reference from the models
	$(BIN)/python -m taskqueue crds --directory crds --reference docs/reference

openapi: $(READY) ## Write docs/reference/openapi.json from the gateway
	$(BIN)/python -m taskqueue.gateway.openapi_file

settings: $(READY) ## Write the table of worker settings into docs/workers.md
	$(BIN)/python -m taskqueue.worker.settings_table

constraints: ## Pin the newest versions that pyproject.toml allows
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet -e '.[results,gateway,dev,demo,bench]'
	{ sed -n '/^#/p' constraints.txt; .venv-constraints/bin/python -m pip freeze --exclude-editable | sort -f; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-constraints

cluster-up: $(READY) ## Start the development cluster, images included
	$(BIN)/python -m devcluster up

cluster-down: $(READY) ## Delete the development cluster; builds stay in ~/.cache/taskqueue-devcluster
	$(BIN)/python -m devcluster down

deploy: $(READY) ## Start the cluster with RabbitMQ and the operator of this checkout
	$(BIN)/python -m devcluster deploy

images: $(READY) ## Build the images, and load them if the cluster runs
	$(BIN)/python -m devcluster images

dist: $(READY) ## Build wheel and source distribution into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

clean: ## Remove generated files from this folder; the cluster and the cache stay
	rm -rf $(VENV) dist build .demo .pytest-kind .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
