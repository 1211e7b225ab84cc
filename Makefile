# make demo | lessons | test | lint | bench     (on Windows without make: the README has the same commands as one-liners)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

demo: $(VENV)/run.stamp
	$(BIN)/python train.py

lessons: $(VENV)/run.stamp
	for lesson in lessons/[0-9]*.py; do $(BIN)/python $$lesson < /dev/null || exit 1; done

test: $(VENV)/dev.stamp
	PYTHONWARNDEFAULTENCODING=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet "trl>=1.0"
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/train_step.py --lora
	$(BIN)/python benchmarks/data_prep.py

$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.PHONY: demo lessons test lint bench
