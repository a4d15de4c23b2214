# make demo: set up and run the main job. make test: set up and pass the tests. Neither needs a GPU, a hub or root.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed
# torch and vLLM are half a minute of compiling at every start of a process that may not keep their bytecode
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo demo-rc demo-clean test test-slurm lint clean

install: $(READY)

# The marker is written last: an installation that was cut off is made anew.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: $(PYTHON) is not Python 3.11; choose one with PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --no-deps --no-compile --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --no-deps --quiet --disable-pip-version-check --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/python recipes/demo.py

demo-rc: $(READY)
	$(BIN)/python recipes/demo.py --cache

demo-clean:
	rm -rf runs/demo

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slurm: $(READY)
	$(BIN)/python tests/slurm/cluster.py $(BIN)/python -m pytest tests/slurm/two_nodes.py

clean:
	rm -rf $(VENV) runs
