# Every target makes its own environment in .venv. Relative paths only: the folder's name may hold spaces.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick lint types style unit web reproduce clean distclean

VENV := .venv
PYTHON := $(VENV)/bin/python
# Names to try for the interpreter that makes the environment; `make PYTHONS=/path/to/python demo` to choose one.
PYTHONS := python3 python3.13 python3.12 python3.11 python3.10 python
PINS := constraints.txt pyproject.toml
INSTALL := $(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt

help:
	@echo "make demo       sample with the bundled model and draw the comparison"
	@echo "make test       lint, types and every test"
	@echo "make quick      lint, types and the tests that do not train"
	@echo "make lint       ruff and basedpyright only; make types and make style, one of them"
	@echo "make reproduce  repeat the measurements of the documentation"
	@echo "make clean      remove builds and caches; make distclean also removes .venv"

demo: $(VENV)/installed-demo
	$(PYTHON) -m comfyui_tcd.cli demo

reproduce: $(VENV)/installed-demo
	$(PYTHON) -m comfyui_tcd.cli reproduce

# pytest last: its closing line is the verdict.
test: lint web unit

quick: lint web $(VENV)/installed-test
	$(PYTHON) -m pytest --no-skips -m "not slow and not comfyui" --ignore=tests/training --ignore=tests/embedded

lint: style types

style: $(VENV)/installed-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: $(VENV)/installed-test
	$(PYTHON) -m basedpyright

web:
	@if [ ! -d tests/web ]; then echo "web tests skipped: there is no tests/web"; \
	elif ! command -v node >/dev/null; then echo "web tests skipped: node is not installed"; \
	else node --test tests/web/*.test.mjs; fi  # named one by one: what a folder means differs between node versions

unit: $(VENV)/installed-test
	$(PYTHON) -m pytest --no-skips

# The stamps are newer than the pins, so a second run installs nothing.
$(VENV)/installed-demo: $(PINS) | $(PYTHON)
	$(INSTALL) -e ".[demo]"
	@touch $@

$(VENV)/installed-test: $(PINS) | $(PYTHON)
	$(INSTALL) -e ".[test]"
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/comfyui_tcd
	@touch $@ $(VENV)/installed-demo

$(PYTHON):
	@for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	        echo "making $(VENV) with $$python"; exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.10 or newer with the venv module was found (tried: $(PYTHONS))." >&2; \
	echo "Install one, on Debian and Ubuntu with: sudo apt install python3-venv" >&2; \
	exit 1

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo-output
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
