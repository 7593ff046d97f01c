# spate: `make help` lists the commands.
# One non-recursive file; every variant builds in a folder of its own (build/release, build/asan, ...).

VARIANT ?= release
BUILD    := build/$(VARIANT)
CC       ?= cc
PREFIX   ?= /usr/local
PYTHON   ?= /usr/bin/python3

MODULES  := core config schemas bus pg connector sinks cli
PKGS     := libpq yaml-0.1

# Goals that need no compiler must work on a machine where nothing is installed yet.
BARE     := help clean setup demo test ci-test install-packages
ifneq ($(filter-out $(BARE),$(or $(MAKECMDGOALS),all)),)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
PKG_LIBS   := $(shell pkg-config --libs $(PKGS))
endif

WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wformat=2 -Wstrict-prototypes \
            -Wmissing-prototypes -Wvla $(if $(CI),-Werror)
OPT.release := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
OPT.asan    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
OPT.tsan    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
OPT.fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer
LD.release  := -pie -Wl,-z,relro,-z,now
LD.asan     := -fsanitize=address,undefined
LD.tsan     := -fsanitize=thread
LD.fuzz     := -fsanitize=address,undefined

CFLAGS_ALL  := -std=c11 -D_GNU_SOURCE -I. -pthread $(WARN) $(OPT.$(VARIANT)) $(PKG_CFLAGS) $(CFLAGS)
LDFLAGS_ALL := -pthread $(LD.$(VARIANT)) $(LDFLAGS)
LIBS        := $(PKG_LIBS)

sources  = $(filter-out $(1)/main.c,$(wildcard $(1)/*.c $(1)/*/*.c))
objects  = $(patsubst %.c,$(BUILD)/%.o,$(call sources,$(1)))
archive  = $(BUILD)/lib$(1).a
ARCHIVES := $(foreach m,$(MODULES),$(call archive,$(m)))

# What each folder may include, and so what its tests link (docs/decisions.md, tests/lint/includes.sh).
USES.core      := core
USES.config    := config core
USES.schemas   := schemas core
USES.bus       := bus core
USES.pg        := pg core
USES.connector := connector config schemas bus pg core
USES.sinks     := sinks config schemas bus pg core
USES.cli       := cli connector sinks config schemas bus pg core

UNIT     := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/*_test.c))
CONTRACT := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/contract/*_test.c))
FUZZ     := $(patsubst tests/fuzz/%.c,build/fuzz/tests/fuzz/%,$(wildcard tests/fuzz/*_fuzz.c))
BENCHES  := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/bench/*.c))
TOOLS    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/support/*.c))

.PHONY: all help setup demo test unit soak bench asan tsan fuzz lint fmt fmt-check check-headers \
        check-includes check-docs docs install clean compile tools
.DELETE_ON_ERROR:
.SECONDARY:

all: compile ## build spate into build/release/spate
compile: $(BUILD)/spate

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BUILD)/spate: $(BUILD)/cli/main.o $(ARCHIVES)
	$(CC) $(LDFLAGS_ALL) -o $@ $< $(foreach m,$(USES.cli),$(call archive,$(m))) $(LIBS)

define module_rules
$(call archive,$(1)): $(call objects,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach m,$(MODULES),$(eval $(call module_rules,$(m))))

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

# tests/unit/<folder>_<what>_test.c links that folder and what the folder may use.
folder_of = $(firstword $(subst _, ,$(notdir $(1))))
libs_of   = $(foreach m,$(or $(USES.$(call folder_of,$(1))),$(USES.cli)),$(call archive,$(m)))

.SECONDEXPANSION:
$(BUILD)/tests/unit/%_test: $(BUILD)/tests/unit/%_test.o $$(call libs_of,%)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)
$(BUILD)/tests/contract/%_test: $(BUILD)/tests/contract/%_test.o $$(call libs_of,%)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)
$(BUILD)/tests/bench/%: $(BUILD)/tests/bench/%.o $$(call libs_of,%)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)
$(BUILD)/tests/support/%: $(BUILD)/tests/support/%.o $$(call libs_of,%)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)
$(BUILD)/tests/fuzz/%_fuzz: $(BUILD)/tests/fuzz/%_fuzz.o $$(call libs_of,%)
	$(CC) $(LDFLAGS_ALL) -fsanitize=fuzzer -o $@ $^ $(LIBS)

tools: $(TOOLS)

clean: ## remove everything that was built
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
