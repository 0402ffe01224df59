.PHONY: check format lint types docs quick test test-full lowest gpu

# What CI runs first, in CI's order; `make lowest` follows.
check: lint types docs test

format:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

# The site, under site/; a broken link is an error.
docs:
	zensical build --strict --clean

# Two workers, so that one computes while the other waits: for SLURM, a browser, a signal.
PYTEST = python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

test:
	$(PYTEST)

# What to run while editing: under a minute.
quick:
	$(PYTEST) -q -m "not full and not slow"

# The wide sweeps too.
test-full:
	$(PYTEST) -m ""

# With the lowest versions that pyproject.toml allows, in a new environment.
lowest:
	.ci/lowest

# On a machine with a GPU: the tests that need one, and how fast it trains.
gpu:
	python -m benchmarks.gpu --write docs
