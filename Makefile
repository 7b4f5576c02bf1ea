# One command from a fresh checkout: every target first makes .venv. `make help` lists them.
PYTHON ?= python3
CONFIG ?= base
TARGET ?= ecp5
BOARD  ?=
JOBS   ?= 2
VENV   := .venv
PY     := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PYTHONPATH=. $(VENV)/bin/python
STAMP  := $(VENV)/.stamp
export CONFIG WAVES

.DEFAULT_GOAL := help
.PHONY: help env sim test bench models verilog synth docs lint formal dma-soak pnr bitstream vivado gates asic nightly clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'
	@echo "  variables: CONFIG=tiny|base|ecp5|big or a file  BOARD=ulx3s|arty|kv260  WAVES=1  JOBS=2  PYTHON=python3.x  T=<pytest arguments>  ARGS=<program arguments>"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --progress-bar off --disable-pip-version-check --editable '.[dev]'
	touch $@

env: $(STAMP)  ## make .venv with every pinned tool

sim: env  ## blocks, then text of a model, on the simulated tile (CONFIG=, WAVES=1)
	$(PY) -m sim.main $(ARGS)

# A first run of Yosys or nextpnr compiles them (WebAssembly) into a cache that two must not write at once.
test: env  ## every test, two at once (JOBS=2), with progress (T="-k name" selects)
	@for tool in yosys nextpnr-ecp5 nextpnr-himbaechel-gowin; do $(VENV)/bin/yowasp-$$tool --version || exit 1; done
	$(PY) -m pytest -v -n $(JOBS) --dist worksteal $(T)

bench: env  ## cycles, utilisation and bytes against their bounds -> build/bench.json
	@mkdir -p build
	$(PY) -m sim.bench $(ARGS)

models: env  ## models on the RTL: cycles per token, bound, agreement with float32 (ARGS=more checkpoints)
	$(PY) -m sim.model_table $(ARGS)

verilog: env  ## export build/<config>.v, with lint waivers, C header, FuseSoC core, Vivado Tcl (CONFIG= or a file)
	$(PY) -m hw.export --config $(CONFIG) $(ARGS)

synth: env  ## LUT, FF, DSP, RAM per unit (CONFIG=, TARGET=ecp5|nexus|gowin|xilinx, ARGS=--update)
	$(PY) -m sim.synth --config $(CONFIG) --target $(TARGET) $(ARGS)

pnr: CONFIG := $(if $(filter command line environment,$(origin CONFIG)),$(CONFIG),ecp5)
pnr: env  ## place and route the tile, three seeds (CONFIG=ecp5, TARGET=ecp5|gowin; ARGS="--unit sram")
	$(PY) -m sim.pnr --config $(CONFIG) --target $(TARGET) $(ARGS)

bitstream: env  ## build/<board>/serrano.bit: Yosys, nextpnr, ecppack (BOARD=ulx3s; ARGS="--seeds 4 5")
	$(PY) -m sim.bitstream $(BOARD:%=--board %) $(ARGS)

vivado: env  ## build/<board>: a Vivado project, to be built with `vivado -source build.tcl` (BOARD=arty|kv260)
	$(PY) -m hw.board_vivado $(BOARD:%=--board %) $(ARGS)

docs: env  ## docs/isa.md, docs/registers.md and C headers in build/ from the tables
	$(PY) -m hw.isa_docs

lint: env  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

formal: env  ## proofs in sim/formal
	$(PY) -m pytest -v sim/formal $(T)

gates: env  ## a block on the Yosys netlist, 64 power-up states at once (CONFIG=tiny|ecp5, ARGS="--seeds 3")
	$(PY) -m sim.gates --config $(if $(filter command line environment,$(origin CONFIG)),$(CONFIG),tiny) $(ARGS)

asic: env  ## cells of a liberty file: area by unit, macros, longest path (LIBERTY=, CONFIG=)
	$(PY) -m sim.asic --config $(if $(filter command line environment,$(origin CONFIG)),$(CONFIG),tiny) --liberty $(LIBERTY) $(ARGS)

dma-soak: env  ## a million random DMA transfers with stalls, errors and resets
	$(PY) -m sim.dma_soak --transfers 1000000 $(ARGS)

nightly: env  ## hours: soak tests, gates, synthesis, place and route; all steps, then a table (ARGS=--list)
	$(PY) -m sim.nightly $(ARGS)

clean:  ## remove build products, keep .venv
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info sim_build
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
