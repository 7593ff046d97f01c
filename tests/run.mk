# The recipes that people type first. They need no compiler when they begin: docker/setup.sh brings it.

setup: ## install what building, demo and tests need (Debian 12 or newer; says what and why first)
	@docker/setup.sh

demo: ## the whole story on this machine: two databases, two teams, ends in EQUAL (KEEP=1 leaves it running)
	@docker/setup.sh --quiet
	@test -x build/release/spate || echo "demo: building spate"
	@$(MAKE) --no-print-directory -s -j$$(nproc) compile
	@KEEP='$(KEEP)' $(PYTHON) tests/demo/demo.py

test: ## everything; T=PATTERN runs some, SEED=N repeats the random parts
	@docker/setup.sh --quiet --tests
	@T='$(T)' SEED='$(SEED)' $(PYTHON) tests/run.py

.PHONY: test-versions
test-versions: ## the integration tests on Postgres 14, 16, 17 and 18; VERSIONS="17 18" for some, T=PATTERN
	@docker/setup.sh --quiet --tests
	@T='$(T)' SEED='$(SEED)' VERSIONS='$(VERSIONS)' $(PYTHON) tests/run.py versions

soak: ## random faults for long, with the checker at the end: BUS=local|kafka|lab KILLS= SEED= MINUTES=
	@docker/setup.sh --quiet --tests
	@$(MAKE) --no-print-directory -s -j$$(nproc) compile $(if $(filter lab,$(BUS)),$(LAB_TESTS))
	@BUS='$(BUS)' KILLS='$(KILLS)' SEED='$(SEED)' MINUTES='$(MINUTES)' $(PYTHON) -m tests.integration.soak

# What the lab of the bus runs (tests/lab/soak.py).
LAB_TESTS := $(addprefix build/release/tests/,support/buslab_run unit/bus_power_test unit/buslab_outage_test \
    unit/buslab_idle_test)

.PHONY: lab-arm
lab-arm: ## the bus under kills, freezes and sleepers on an emulated AArch64 (installs a cross compiler and qemu)
	@docker/setup.sh --quiet --arm
	@$(MAKE) --no-print-directory -s -j$$(nproc) VARIANT=arm CC=aarch64-linux-gnu-gcc AR=aarch64-linux-gnu-ar \
	    build/arm/tests/support/buslab_run
	@SEED='$(SEED)' $(PYTHON) -m tests.lab.soak arm
