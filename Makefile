.PHONY: check format lint types docs test test-full

# What CI runs, in CI's order.
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

test:
	python -m pytest $(PYTEST_ARGS)

# The wide sweeps too.
test-full:
	python -m pytest -m "" $(PYTEST_ARGS)
