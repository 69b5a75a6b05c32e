# make run: install and run the main job. make test: all tests. make check: the quick ones.
# make gallery: the claims of papers, each as an experiment. make docs: the site, into site/.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check lint gallery bench docs clean
.DELETE_ON_ERROR:

run: .venv/app.stamp
	$(BIN)/gflow run

# Two workers share the cores: the threads of a BLAS would wait for one another.
test check: export OPENBLAS_NUM_THREADS = 1

test: .venv/dev.stamp
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/dev.stamp
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m notebooks.check

gallery: .venv/app.stamp
	$(BIN)/gflow gallery

.PHONY: notebooks
notebooks: .venv/dev.stamp
	$(BIN)/python -m notebooks.execute

bench: .venv/dev.stamp
	$(BIN)/python -m benchmarks.descent --quick
	$(BIN)/python -m benchmarks.kinks --quick
	$(BIN)/python -m benchmarks.testset --quick
	$(BIN)/python -m benchmarks.accuracy --quick
	$(BIN)/python -m benchmarks.deep --quick
	$(BIN)/python -m benchmarks.digits --quick
	$(BIN)/python -m benchmarks.shapes --quick
	$(BIN)/python -m benchmarks.risks --quick
	$(BIN)/python -m benchmarks.horizons --quick
	$(BIN)/python -m benchmarks.spectrum --quick
	$(BIN)/python -m benchmarks.critical --quick
	$(BIN)/python -m benchmarks.asymptotics --quick
	$(BIN)/python -m benchmarks.orders --quick
	$(BIN)/python -m benchmarks.rate_coverage --quick

docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf .venv .cache runs site benchmarks/results

.venv/pip.stamp:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "gflow needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/app.stamp: pyproject.toml .venv/pip.stamp
	$(BIN)/pip install --quiet --editable ".[app]"
	touch $@

.venv/dev.stamp: .venv/app.stamp
	$(BIN)/pip install --quiet --group dev
	touch $@

.venv/docs.stamp: .venv/app.stamp
	$(BIN)/pip install --quiet --group docs
	touch $@
