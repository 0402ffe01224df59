.PHONY: check format lint types test test-full

# What CI runs, in CI's order.
check: lint types test

format:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

test:
	python -m pytest $(PYTEST_ARGS)

# The wide sweeps too.
test-full:
	python -m pytest -m "" $(PYTEST_ARGS)
