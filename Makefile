# make demo: the sample corpus from dialogues to report. make test: all checks. make clean: remove what make made, runs stay.
PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(shell $(name) -c 'print("$(name)")' 2>/dev/null)))
BIN := .venv/bin

.PHONY: demo test clean

# Nothing that these two need comes from a network.
demo test: export HF_HUB_OFFLINE = 1
demo test: export TRANSFORMERS_OFFLINE = 1

demo: .venv/.ready
	@$(BIN)/erckit run sample
	@echo "The report: runs/sample/report/index.html"

test: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -n 2 --dist loadfile

# torch by itself first: it comes as a CPU build where one is provided. The stamp comes last, so that a half-made
# .venv is mended by running again.
.venv/.ready: pyproject.toml constraints.txt
	@echo "Installing into .venv: once, some minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
