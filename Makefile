# GradWard: `make demo` and `make test` need only Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOB ?= jobs/quickstart

.PHONY: demo poc poc-stop picture photographs sweep figures test test-fast lint format clean

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

# The pictures of report and TensorBoard in README and docs; needs a Chromium.
photographs: demo $(VENV)/.dev
	$(BIN)/python docs/photograph.py runs/quickstart

# Noise on the updates, four runs: the picture in docs/compare.md.
ONE_SITE := --set 'auditor.sites=["site-1"]'
sweep: $(VENV)/.runtime
	$(BIN)/gradward run jobs/quickstart $(ONE_SITE) --workspace runs/sweep/none
	for noise in 0.01 0.1 1; do \
	    $(BIN)/gradward run jobs/quickstart_noise --set UpdateNoise.fraction=$$noise $(ONE_SITE) \
	        --workspace runs/sweep/noise-$$noise || exit 1; \
	done
	$(BIN)/gradward report runs/sweep/* --compare --out runs/compare
	cp runs/compare/sweep.png docs/compare-sweep.png

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
