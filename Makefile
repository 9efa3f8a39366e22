# make demo    set up, and the whole chain: pretrain on text, fine-tune, compare, answer (about 5 minutes)
# make test    set up, run the tests
# make check   the tests, the linters, the docs' examples and the slow tests
# make gpu     the tests of a GPU, where there is one; all others are of the CPU
# make bench   the benchmarks (minutes; see benchmarks/README.md)

PYTHON ?= python3
BIN := .venv/bin
INSTALL ?= $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test check lint slow gpu bench clean

demo: .venv/.demo
	$(BIN)/python examples/chain.py

test: .venv/.dev
	$(BIN)/python -m pytest -n auto -m "not slow"

check: test lint slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

gpu: .venv/.dev
	$(BIN)/python -m pytest tests/test_gpu.py

bench: .venv/.dev
	$(BIN)/python benchmarks/mnist.py
	$(BIN)/python benchmarks/ffn.py
	$(BIN)/python benchmarks/lora.py
	$(BIN)/python benchmarks/small.py

clean:
	rm -rf .venv

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e '.[report]'
	touch $@

.venv/.dev: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@ .venv/.demo
