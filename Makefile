# `make demo` trains a small U-Net and draws pictures; `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test parity lint types doctest docs clean

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && uv pip install --quiet --python $(BIN)/python -e '.[test]'; \
	else \
		$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'; \
	fi
	@touch $@

demo: $(STAMP)
	rm -rf out/tiny_unet
	$(BIN)/python examples/tiny_unet.py --out out/tiny_unet

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

parity: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m parity tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

doctest: $(STAMP)
	$(BIN)/python -m pytest -p no:cacheprovider --doctest-modules densezoo

docs: $(STAMP)
	$(BIN)/python -m densezoo.viz.readme README.md

clean:
	rm -rf $(VENV) out
