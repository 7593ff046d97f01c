# spate: `make help` lists the commands.
# One non-recursive file; every variant builds in a folder of its own (build/release, build/asan, ...).

VARIANT ?= release
BUILD    := build/$(VARIANT)
CC       ?= cc
PREFIX   ?= /usr/local
PYTHON   ?= /usr/bin/python3

MODULES  := core config schemas bus pg connector sinks cli
PKGS     := libpq yaml-0.1 rdkafka libmicrohttpd libcrypto

# Goals that need no compiler must work on a machine where nothing is installed yet.
BARE     := help clean setup demo test test-versions soak lab-arm fmt fmt-check check-includes
ifneq ($(filter-out $(BARE),$(or $(MAKECMDGOALS),all)),)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
$(if $(PKG_LIBS),,$(error pkg-config finds no $(PKGS); `make setup` installs what is missing))
endif

WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wformat=2 -Wstrict-prototypes \
            -Wmissing-prototypes -Wvla $(if $(CI),-Werror)
# -fPIC with hidden names costs nothing in the program, and its objects are libspatebus' as well.
OPT.release := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIC -fvisibility=hidden
OPT.asan    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
OPT.tsan    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
OPT.failpoints := -O1 -g -DFAILPOINTS
OPT.arm     := -O2 -g
OPT.fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer
LD.release  := -pie -Wl,-z,relro,-z,now
LD.asan     := -fsanitize=address,undefined
LD.tsan     := -fsanitize=thread
LD.arm      := -static
LD.fuzz     := -fsanitize=address,undefined

CFLAGS_ALL  := -std=c11 -D_GNU_SOURCE -I. -pthread $(WARN) $(OPT.$(VARIANT)) $(PKG_CFLAGS) $(CFLAGS)
LDFLAGS_ALL := -pthread $(LD.$(VARIANT)) $(LDFLAGS)
LIBS        := $(if $(filter arm,$(VARIANT)),,$(PKG_LIBS))

# For another processor, whose libraries are not here: what needs none of them.
LEFT_OUT.arm := core/http.c bus/open.c bus/kafka/%
sources  = $(filter-out $(1)/main.c $(LEFT_OUT.$(VARIANT)),$(wildcard $(1)/*.c $(1)/*/*.c))
objects  = $(patsubst %.c,$(BUILD)/%.o,$(call sources,$(1)))
archive  = $(BUILD)/lib$(1).a
ARCHIVES := $(foreach m,$(MODULES),$(call archive,$(m)))

# What each folder may include, and so what its tests link (docs/decisions.md, tests/lint/includes.sh).
USES.core      := core
USES.config    := config core
USES.schemas   := schemas core
USES.bus       := bus core
USES.buslab    := buslab core
USES.pg        := pg core
USES.connector := connector config schemas bus pg core
USES.sinks     := sinks config schemas bus pg core
USES.cli       := cli connector sinks config schemas bus pg core

UNIT     := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/*_test.c))
CONTRACT := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/contract/*_test.c))
FUZZ     := $(patsubst tests/fuzz/%.c,build/fuzz/tests/fuzz/%,$(wildcard tests/fuzz/*_fuzz.c))
BENCHES  := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/bench/*.c))
TOOLS    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/support/*.c))

HEADERS  := $(foreach m,$(MODULES),$(wildcard $(m)/*.h $(m)/*/*.h))
CFILES   := $(foreach m,$(MODULES),$(wildcard $(m)/*.c $(m)/*/*.c)) $(wildcard tests/*/*.c tests/*/*.h docs/examples/*.c)
MAN      := $(patsubst docs/%.md,build/man/%,$(wildcard docs/*.1.md docs/*.3.md))

# libspatebus: the local bus for other programs (bus/api/spate_bus.h). The number after .so. changes when a program
# that was linked before could no longer run. Of the static one, too, nothing but the API can be seen from outside.
LIBBUS_ABI     := 1
LIBBUS_RELEASE := $(LIBBUS_ABI).0.0
LIBBUS         := $(BUILD)/libspatebus.so.$(LIBBUS_RELEASE) $(BUILD)/libspatebus.a $(BUILD)/spate-bus.pc
LIBBUS_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard bus/api/*.c bus/local/*.c))

.PHONY: all help setup demo test unit soak bench asan tsan fuzz lint fmt fmt-check check-headers \
        check-includes check-docs docs install clean compile tools cppcheck clang-tidy
.DELETE_ON_ERROR:
.SECONDARY:

all: compile ## build spate into build/release/spate
compile: $(BUILD)/spate $(if $(filter release,$(VARIANT)),$(LIBBUS))

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BUILD)/spate: $(BUILD)/cli/main.o $(ARCHIVES)
	$(CC) $(LDFLAGS_ALL) -o $@ $< $(foreach m,$(USES.cli),$(call archive,$(m))) $(LIBS)

$(BUILD)/libspatebus.so.$(LIBBUS_RELEASE): bus/api/spate-bus.map $(LIBBUS_OBJECTS) $(BUILD)/libcore.a
	$(CC) $(LDFLAGS) -shared -pthread -Wl,-soname,libspatebus.so.$(LIBBUS_ABI) -Wl,--version-script=$< \
	    -Wl,-z,relro,-z,now,-z,defs,-z,nodelete -o $@ $(LIBBUS_OBJECTS) $(BUILD)/libcore.a
$(BUILD)/libspatebus.a: $(LIBBUS_OBJECTS) $(BUILD)/libcore.a
	$(CC) -r -nostdlib -o $(BUILD)/spatebus.o $^
	objcopy --wildcard --keep-global-symbol='spatebus_*' $(BUILD)/spatebus.o
	@rm -f $@
	ar rcs $@ $(BUILD)/spatebus.o
$(BUILD)/spate-bus.pc: bus/api/spate-bus.pc.in core/version.c Makefile
	@sed -e 's|@VERSION@|$(shell sed -n 's/.*"\(.*\)".*/\1/p' core/version.c | tail -n 1)|' $< >$@

# The bus once more, with its failpoints and with rules that a test may take away (bus/local/broken.h), and
# the crowd of tests/lab: tests/unit/buslab_*_test.c and tests/support/buslab_*.c link these.
LAB := -DSPATE_CONTROLS -DFAILPOINTS
$(BUILD)/libbuslab.a: $(patsubst %.c,$(BUILD)/lab/%.o,$(call sources,bus) $(wildcard tests/lab/*.c))
	@mkdir -p $(@D)
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/lab/%.o: %.c $(BUILD)/how
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) $(LAB) -MMD -MP -c -o $@ $<
$(BUILD)/tests/unit/buslab_%.o $(BUILD)/tests/support/buslab_%.o: CFLAGS_ALL += $(LAB)
# A race detector goes by addresses: all threads get the same mapping of a file (tests/lab/mappings.c).
LAB_LD.tsan := -Wl,--wrap=mmap,--wrap=munmap
$(BUILD)/tests/unit/buslab_% $(BUILD)/tests/support/buslab_%: private LDFLAGS_ALL += $(LAB_LD.$(VARIANT))

# The program that makes what a power cut leaves.
$(BUILD)/tests/unit/buslab_outage_test: | $(BUILD)/tests/support/bus_outage

# Objects that were compiled in another way do not mix.
$(BUILD)/how: FORCE
	@mkdir -p $(@D)
	@echo '$(OPT.$(VARIANT))' | cmp -s - $@ || echo '$(OPT.$(VARIANT))' >$@
FORCE:

define module_rules
$(call archive,$(1)): $(call objects,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	$(AR) rcs $$@ $$^
endef
$(foreach m,$(MODULES),$(eval $(call module_rules,$(m))))

$(BUILD)/%.o: %.c $(BUILD)/how
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

# --- checks ---------------------------------------------------------------------------------------------------

# One TAP stream for each program; the exit status says whether any of them failed.
unit: $(UNIT) $(CONTRACT) ## the unit and contract tests that need no server, in this VARIANT
	@status=0; for t in $^; do echo "# $$t"; CMOCKA_MESSAGE_OUTPUT=TAP $$t || status=1; done; exit $$status

asan: ## build the unit tests with AddressSanitizer and UBSan, and run them
	@$(MAKE) --no-print-directory VARIANT=asan unit

tsan: ## build the unit tests with ThreadSanitizer, and run them
	@TSAN_OPTIONS='halt_on_error=1 suppressions=tests/lint/tsan.txt' $(MAKE) --no-print-directory VARIANT=tsan unit

# The name of a target's seeds: tests/fuzz/seeds/config_load or tests/fuzz/seeds/load for config_load_fuzz.
fuzz: ## replay the fuzz seeds under ASan and UBSan (FUZZ_SECONDS=n: fuzz each target so long); needs clang
	@command -v clang >/dev/null || { echo 'make fuzz needs clang (apt-get install clang)'; exit 1; }
	@$(MAKE) --no-print-directory VARIANT=fuzz CC=clang $(FUZZ)
	@for t in $(FUZZ); do \
	    name=$$(basename $$t _fuzz); seeds=tests/fuzz/seeds/$$name; \
	    [ -d $$seeds ] || seeds=tests/fuzz/seeds/$${name#*_}; \
	    [ -d $$seeds ] || { echo "$$t has no seeds in tests/fuzz/seeds/$$name"; exit 1; }; \
	    mkdir -p build/fuzz/corpus/$$name; \
	    if [ -n "$(FUZZ_SECONDS)" ]; then \
	        $$t -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/corpus/ build/fuzz/corpus/$$name $$seeds || exit 1; \
	    else \
	        echo "$$t: $$(find $$seeds -type f | wc -l) seeds"; \
	        find $$seeds -type f -print0 | xargs -0 $$t -runs=1 >build/fuzz/$$name.log 2>&1 || \
	            { cat build/fuzz/$$name.log; exit 1; }; \
	    fi; \
	done

bench: compile $(BENCHES) ## figures side by side in one run: BENCH=path, and BUS=kafka for the path over a broker
	@$(PYTHON) tests/bench/$(or $(BENCH),path).py

lint: check-includes check-headers check-docs cppcheck clang-tidy ## all checks that read the sources

check-includes: ## folders include each other in one direction only
	@tests/lint/includes.sh

check-headers: ## every header compiles alone, with gcc and with clang
	@for cc in gcc clang; do \
	    if command -v $$cc >/dev/null; then \
	        tests/lint/headers.sh $$cc -std=c11 -D_GNU_SOURCE -I. $(WARN) $(PKG_CFLAGS) || exit 1; \
	    else echo "check-headers: $$cc is not installed, passed by"; fi; \
	done

check-docs: $(BUILD)/spate ## config/REFERENCE.md says what the option tables say
	@$(BUILD)/spate reference | diff -u config/REFERENCE.md - || \
	    { echo 'config/REFERENCE.md is not what the option tables say; run make docs'; exit 1; }

cppcheck:
	@if command -v cppcheck >/dev/null; then \
	    cppcheck --quiet --std=c11 --error-exitcode=1 --inline-suppr --enable=warning,portability -D_GNU_SOURCE -I. \
	        --suppressions-list=tests/lint/cppcheck.txt $(MODULES); \
	else echo 'lint: cppcheck is not installed, passed by'; fi

clang-tidy:
	@if command -v clang-tidy >/dev/null; then \
	    clang-tidy --quiet --warnings-as-errors='*' --checks='-*,bugprone-*,clang-analyzer-*,-bugprone-easily-swappable-parameters,-bugprone-reserved-identifier,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling' \
	        $(foreach m,$(MODULES),$(call sources,$(m))) -- -std=c11 -D_GNU_SOURCE -I. $(PKG_CFLAGS); \
	else echo 'lint: clang-tidy is not installed, passed by'; fi

# Another major version lays the same file out differently, so it is pinned.
fmt: ## lay out all C files (clang-format-14)
	@command -v clang-format-14 >/dev/null || { echo 'fmt: clang-format-14 is not installed'; exit 1; }
	@clang-format-14 -i $(CFILES) $(HEADERS)

fmt-check: ## is every C file laid out as clang-format-14 would?
	@if command -v clang-format-14 >/dev/null; then clang-format-14 --dry-run -Werror $(CFILES) $(HEADERS); \
	else echo 'fmt-check: clang-format-14 is not installed, passed by'; fi

# --- docs and installation ------------------------------------------------------------------------------------

docs: $(BUILD)/spate $(MAN) ## config/REFERENCE.md and the man pages
	@$(BUILD)/spate reference >config/REFERENCE.md

build/man/%: docs/%.md docs/man.awk
	@mkdir -p $(@D)
	@awk -f docs/man.awk $< >$@

INTO := $(DESTDIR)$(PREFIX)
install: compile $(MAN) ## into PREFIX (/usr/local), below DESTDIR
	install -d $(addprefix $(INTO)/,bin include/spate lib/pkgconfig share/man/man1 share/man/man3 share/doc/spate/examples)
	install -m 755 $(BUILD)/spate $(INTO)/bin/spate
	install -m 644 bus/api/spate_bus.h $(INTO)/include/spate/bus.h
	install -m 755 $(BUILD)/libspatebus.so.$(LIBBUS_RELEASE) $(INTO)/lib
	ln -sf libspatebus.so.$(LIBBUS_RELEASE) $(INTO)/lib/libspatebus.so.$(LIBBUS_ABI)
	ln -sf libspatebus.so.$(LIBBUS_ABI) $(INTO)/lib/libspatebus.so
	install -m 644 $(BUILD)/libspatebus.a $(INTO)/lib
	sed -e 's|@PREFIX@|$(PREFIX)|' $(BUILD)/spate-bus.pc >$(INTO)/lib/pkgconfig/spate-bus.pc
	install -m 644 $(filter %.1,$(MAN)) $(INTO)/share/man/man1
	install -m 644 $(filter %.3,$(MAN)) $(INTO)/share/man/man3
	install -m 644 $(wildcard config/*.yaml) config/REFERENCE.md \
	    $(filter-out %.1.md %.3.md,$(wildcard docs/*.md)) $(INTO)/share/doc/spate
	install -m 644 $(wildcard docs/examples/*) $(INTO)/share/doc/spate/examples
	@[ -n "$(DESTDIR)" ] || ldconfig 2>/dev/null || true

-include tests/run.mk

clean: ## remove everything that was built
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
