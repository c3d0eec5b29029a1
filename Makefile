# alfine: targets install what they need on first use. `make help` lists the targets.
CONFIG ?= ludwig_configs/quickstart.yaml
NAME   ?= $(basename $(notdir $(CONFIG)))
ARGS   ?=
PART   ?= 1 2 3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Without bytecode files, every command would compile the imported libraries again (half a minute for Ludwig).
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup init check preview plan finetune report compare sweep export predict chat serve test test-unit lint benchmark gpu-acceptance fault-injection clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  CONFIG=$(CONFIG) NAME=$(NAME) choose the job and the run; ARGS='trainer.epochs=2' overrides keys"

setup: $(READY) ## install everything into .venv (other targets run this if needed)

$(READY): requirements.lock pyproject.toml
	@python=$$(for p in python3.12 python3.13 python3 "$$(pyenv which python3.12 2>/dev/null)" "$$(pyenv prefix 3.12 2>/dev/null)/bin/python" "$$(uv python find '>=3.12,<3.14' 2>/dev/null)"; do \
	  [ -n "$$p" ] && "$$p" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo "$$p" && break; done); \
	if [ -z "$$python" ]; then echo "alfine needs Python 3.12 or 3.13; install one (for example: apt install python3.12-venv, pyenv install 3.12, or uv python install 3.12)" >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "uv>=0.5,<1"
	@echo "Installing (about 6 GB, a minute or more) ..."
	@$(BIN)/python -m uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/python -m uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $(READY)

init: $(READY) ## write a job for a data file: DATA=tickets.csv
	@$(BIN)/alfine init $(DATA) $(ARGS)

check: $(READY) ## check CONFIG and its data; nothing is trained
	@$(BIN)/alfine check $(CONFIG) $(ARGS)

preview: $(READY) ## show tokenized rows, sequence lengths and learning rates
	@$(BIN)/alfine preview $(CONFIG) $(ARGS)

plan: $(READY) ## show the memory and the time that CONFIG will need
	@$(BIN)/alfine plan $(CONFIG) $(ARGS)

finetune: $(READY) ## fine-tune CONFIG into runs/NAME and compare base and tuned
	@$(BIN)/alfine run $(CONFIG) --name $(NAME) $(ARGS)

report: $(READY) ## show the verdict, scores and gates of runs/NAME; exit code 3 if a gate failed
	@$(BIN)/alfine report runs/$(NAME) $(ARGS)

compare: $(READY) ## compare runs/NAME with another model: ARGS=runs/OTHER
	@$(BIN)/alfine compare runs/$(NAME) $(ARGS)

sweep: $(READY) ## compare forgetting strategies on CONFIG: same data, seeds and budget
	@$(BIN)/alfine sweep $(CONFIG) $(ARGS)

export: $(READY) ## write the tuned model of runs/NAME for other programs and check it: ARGS="--to gguf"
	@$(BIN)/alfine export runs/$(NAME) $(ARGS)

predict: $(READY) ## complete the rows of FILE with the model of runs/NAME
	@$(BIN)/alfine predict runs/$(NAME) $(FILE) $(ARGS)

chat: $(READY) ## talk to base and tuned model of runs/NAME
	@$(BIN)/alfine chat runs/$(NAME) $(ARGS)

serve: $(READY) ## serve base and tuned model of runs/NAME on http://127.0.0.1:8000
	@$(BIN)/alfine serve runs/$(NAME) $(ARGS)

test: lint ## run every test, the linter, the formatter, the type checker and the import layers
	@$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

UNIT := $(addprefix tests/,authoring checks commands config console data report scoring stages storage test_cli.py test_registry.py)
test-unit: $(READY) ## run the tests that need no model and no browser (a minute)
	@$(BIN)/pytest -n 2 -m "not ludwig and not model and not browser" $(UNIT) $(ARGS)

lint: $(READY) ## ruff (format and rules), mypy, import layers
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

benchmark: $(READY) ## speed of steps, completions and preparation, against stock Ludwig and TRL (an hour on two cores)
	@$(BIN)/python -m uv pip install -q --python $(BIN)/python "trl>=1,<2"
	@$(BIN)/python -m tests.benchmarks.throughput $(ARGS)
	@$(BIN)/python -m tests.benchmarks.templates
	@$(BIN)/python -m tests.benchmarks.completions
	@$(BIN)/python -m tests.benchmarks.preparation
	@$(BIN)/python -m tests.benchmarks.workers
	@[ ! -d runs/$(NAME)/model ] || $(BIN)/python -m tests.benchmarks.serving runs/$(NAME)
	@$(BIN)/python -m tests.benchmarks.growth --plot docs/growth.svg

gpu-acceptance: $(READY) ## what only a GPU can show, in three parts of up to 4 minutes: PART=1 runs one (docs/gpu/README.md)
	@$(BIN)/python -m uv pip install -q --python $(BIN)/python "trl>=1,<2" "bitsandbytes>=0.45,<1" "liger-kernel>=0.8,<1"
	@failed=; for part in $(PART); do $(BIN)/python -m tests.gpu_acceptance --part $$part $(ARGS) || failed=1; done; [ -z "$$failed" ]

fault-injection: $(READY) ## kill runs at random times and make every write fail once; each must end with the same result
	@$(BIN)/python -m tests.fault_injection --kills 100
	@$(BIN)/python -m tests.fault_injection --kills 5 --packaged
	@$(BIN)/python -m tests.failing_writes --single 12

clean: ## remove staging files and tool caches (runs/ and .venv are kept)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache runs/*/*.partial
