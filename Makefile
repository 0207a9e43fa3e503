# Every target makes its own .venv at need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
NEEDS := -c constraints.txt -e '.[pipeline,dev]'
FITS := -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])'

# Set, it keeps `python -m` from finding the modules of this folder.
unexport PYTHONSAFEPATH

.DEFAULT_GOAL := help
.PHONY: help demo test test-services up down status remote plan lint ui bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## the whole pipeline on small images, in minutes: teacher, students, controls, report
	@$(BIN)/python -m flows.demo

test: $(READY) ## style, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-services: $(READY) ## tests on real services: PostgreSQL (must be installed), S3, MLflow, Prefect; minutes
	$(BIN)/python -m pytest -m services --numprocesses 2 --dist loadscope

up: $(READY) ## start PostgreSQL, S3, MLflow, Prefect and a worker on this machine, and deploy the flows
	@$(BIN)/python -m infra.stack up

down: $(READY) ## stop them; what is stored stays
	@$(BIN)/python -m infra.stack down

status: $(READY) ## which of them run and answer
	@$(BIN)/python -m infra.stack status

remote: $(READY) ## where checkpoints and results are shared, for this clone alone: make remote URL=s3://ferd/dvc
	@test -n "$(URL)" || { echo "make remote URL=s3://BUCKET/FOLDER"; exit 2; }
	@$(BIN)/python -m tasks.remote "$(URL)"

plan: $(READY) ## what is out of date, and what it would cost on this machine (make plan OF=digits: one benchmark)
	@$(BIN)/python -m tasks.plan $(OF)

lint: $(READY) ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## every hot step beside its plain reference, in turn: that they compute the same, and how much faster
	@$(BIN)/python -m benchmarks.speed

ui: $(READY) ## browse runs and rounds in MLflow, the comparison of γ first, on http://127.0.0.1:5000
	@$(BIN)/python -m tasks.browse

clean: ## remove .venv; results and checkpoints stay
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@test -e .git || { echo "this is no Git repository, which DVC needs: git clone it"; exit 1; }
	@$(BIN)/python $(FITS) 2> /dev/null || $(PYTHON) $(FITS) || { echo "make PYTHON=python3.12 ..."; exit 1; }
	@# What was stopped, or had no ensurepip, leaves a python without pip.
	@{ $(BIN)/python $(FITS) && $(BIN)/python -m pip --version > /dev/null; } 2> /dev/null || $(PYTHON) -m venv --clear $(VENV)
	PIP_USER=0 $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@# uv takes a third of pip's time; pip where uv cannot, such as with an index that only pip is told of.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(NEEDS) || PIP_USER=0 $(BIN)/pip install --quiet $(NEEDS)
	@touch $@
