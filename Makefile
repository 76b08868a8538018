# GradWard: `make demo` and `make test` need only Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOB ?= jobs/quickstart

.PHONY: demo poc poc-stop picture figures test test-fast lint format clean

demo: $(VENV)/.runtime
	$(BIN)/gradward run $(JOB)

# A server and three sites on this machine; then: poc/submit.sh jobs/quickstart
poc: $(VENV)/.runtime
	poc/start.sh

poc-stop: $(VENV)/.runtime
	poc/stop.sh

# The picture in the README.
picture: demo
	cp runs/quickstart/workspace.private/site-1/jobs/simulate_job/pictures/round-2-matching.png \
	    docs/quickstart-site-1.png

# The plots and tables whose single results are kept in the repository; measures nothing.
figures: $(VENV)/.runtime
	$(BIN)/python benchmarks/defenses.py --report
	$(BIN)/python benchmarks/one_image_sites.py --set chest-xray --report
	$(BIN)/python benchmarks/one_image_sites.py --set histology --report
	cp benchmarks/results/defenses/frontier.png docs/defense-frontier.png

# Two processes, for federations mostly wait.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
