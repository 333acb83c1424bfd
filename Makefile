# The two commands of this project, and a few shorter ones. CMake does the work (CMakePresets.json).
#
#   make demo    set up, build, serve the bundled model, generate from a prompt, shut down
#   make test    set up, build, run every test
#   make stress  set up, build, load a server that Prometheus scrapes, report (half a minute)
#
# MODEL (a directory) and PROMPT of the demo can be set:  make demo PROMPT="In the beginning"

JOBS ?= $(shell nproc)
MODEL ?= $(patsubst %/config.json,%,$(firstword $(wildcard models/*/config.json)))
PROMPT ?= It was a dark evening, and the old man
export PROMPT  # through the environment: it may hold quotes
BUILD := build/release

.PHONY: help demo test stress programs build dependencies install asan tsan image-test format lint clean

help:
	@sed -n '3,9p' Makefile | sed 's/^# \{0,1\}//'

dependencies:
	@scripts/install_dependencies build

# Server, client and bst-init only: what the demo and a deployment need.
programs: dependencies
	@test -f $(BUILD)/build.ninja || cmake --preset release -DBUILD_TESTING=OFF
	cmake --build $(BUILD) -j $(JOBS) --target bst-server bst bst-init

# The load generator as well.
build: programs
	cmake --build $(BUILD) -j $(JOBS) --target bst-stress

demo: programs
	@scripts/demo $(BUILD)/bin $(MODEL) "$$PROMPT"

# Also needs Debian's prometheus.
stress: build
	@scripts/install_dependencies test
	@scripts/stack --bin $(BUILD)/bin --model $(MODEL)

test:
	@scripts/install_dependencies test
	cmake --preset release -DBUILD_TESTING=ON
	cmake --build $(BUILD) -j $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure -j 2

# The unit tests (ThreadSanitizer's: of what runs on several threads), and server and client as processes, under
# sanitizers; `make test` first, it installs what they need.
asan tsan:
	cmake --preset $@ -DBUILD_TESTING=ON
	cmake --build build/$@ -j $(JOBS) --target sanitized_tests
	ctest --preset $@ -j 2

# Builds the container image and runs it, as root on Debian 12; the log belongs to the commit that it names.
image-test:
	@scripts/install_dependencies image
	tests/e2e/image_test tests/e2e/logs/image_test.log

install: build
	cmake --install $(BUILD)

format:
	scripts/lint --fix

lint:
	scripts/lint

clean:
	rm -rf build
