# The two commands of the README: `make reproduce` and `make test`. Each sets up the environment it needs.
PYTHON  ?= python3.11
PROFILE ?= quick

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check

# A stamp is written last, so what an interruption left unfinished is done again.
STAMP_REPRODUCE := $(VENV)/reproduce.stamp
STAMP_TEST      := $(VENV)/test.stamp

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup reproduce test lint book clean

help:
	@echo "make setup                    create $(VENV) with everything that reproduce needs"
	@echo "make reproduce [PROFILE=...]  run the experiments of a profile (quick) and build the book"
	@echo "make book                     build the book from what results/ holds"
	@echo "make test                     run the test suite"
	@echo "make lint                     check formatting, style and types"
	@echo "make clean                    remove the book and the caches (environment and results stay)"

setup: $(STAMP_REPRODUCE)

# `installing` marks a run of pip that has not ended: such an environment is made anew, because a
# killed pip may leave a package that looks installed and is not whole. torch comes first and by its
# exact version: resolved together with the rest, a looser range would pull another build.
$(STAMP_REPRODUCE): pyproject.toml constraints.txt
	@if [ -e $(VENV)/installing ]; then \
	  echo "the last setup was interrupted: making $(VENV) anew"; rm -rf $(VENV); fi
	@if [ ! -x $(BIN)/pip ]; then $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(VENV)/installing
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e '.[reproduce,export]'
	@rm $(VENV)/installing
	@touch $@

# The first stamp is taken back meanwhile: interrupted here, the whole environment is in doubt.
$(STAMP_TEST): $(STAMP_REPRODUCE)
	@touch $(VENV)/installing; rm -f $(STAMP_REPRODUCE)
	$(PIP) install --quiet -c constraints.txt -e '.[reproduce,test]'
	@rm $(VENV)/installing
	@touch $(STAMP_REPRODUCE) $@

reproduce: $(STAMP_REPRODUCE)
	$(BIN)/zq reproduce --profile $(PROFILE)
	@$(BIN)/zq claims --update-readme > /dev/null
	@$(MAKE) --no-print-directory book

# --all: Sphinx repeats no warning of a page that it does not read again, so -W alone would pass
# the second time.
book: $(STAMP_REPRODUCE)
	$(BIN)/jupyter-book build . --all -W -n --keep-going --quiet
	@echo "the book: _build/html/index.html"

# A worker per core, each of one thread.
test: $(STAMP_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(STAMP_TEST)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf _build .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
