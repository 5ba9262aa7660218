# Makefile: set-up, tests and benchmarks on a fresh Debian or Ubuntu machine. `make help` lists what it can do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

PYTHON ?= python3
JOBS ?= $(shell nproc)
# ON makes compiler warnings errors, as .ci/run does.
WERROR ?= OFF

ifeq ($(origin CXX), default)
CXX := c++
endif
export CXX PYTHON

venv := $(CURDIR)/.venv
bin := $(venv)/bin
# Stamps say which step is done; they live with what they vouch for.
done := $(venv)/done
export VIRTUAL_ENV := $(venv)
export PATH := $(bin):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CTEST_PARALLEL_LEVEL := $(JOBS)
ifneq ($(shell command -v ccache),)
export CMAKE_CXX_COMPILER_LAUNCHER := ccache
endif

build_requirements = $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr ',' ' ')
cpp_sources := $(sort $(shell find zmlx python/src -name '*.cpp' -o -name '*.h'))
cpp_files := $(cpp_sources) $(sort $(shell find tests -name '*.cpp' -o -name '*.h'))
tidy_files := $(filter-out tests/cmake_consumer/%, $(filter %.cpp, $(cpp_files)))
configure := --log-level=WARNING -DPython_EXECUTABLE=$(bin)/python

.PHONY: build test test-cpp test-python bench lint format asan tsan arm clean help

help: ## Lists these targets
	@sed -n 's/^\([a-z -]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: $(done)/package ## Builds the package into .venv (Python files are used from the checkout)

test: test-cpp test-python ## Runs all tests

test-cpp: $(done)/package $(done)/gtest ## Runs the C++ tests
	cmake --preset dev $(configure) -DZMLX_WERROR=$(WERROR)
	cmake --build --preset dev
	ctest --preset dev

test-python: $(done)/package ## Runs the Python tests
	python -m pytest

bench: $(done)/package ## Compares stock and patched mlx_lm on a small model, in a few minutes
	zmlx bench inference --model demo

lint: $(done)/gtest $(done)/lint ## Checks format and mistakes, C++ and Python
	clang-format-14 --dry-run -Werror $(cpp_files)
	ruff check
	ruff format --check
	cmake --preset dev $(configure) -DZMLX_WERROR=$(WERROR)
	printf '%s\0' $(tidy_files) | xargs -0 -n 1 -P $(JOBS) tools/tidy.sh build/dev

format: $(done)/lint ## Formats C++ and Python
	clang-format-14 -i $(cpp_files)
	ruff format

asan tsan: $(done)/tools $(done)/gtest ## Runs the C++ tests under sanitizers (asan: address and undefined behaviour, tsan: threads)
	cmake --preset $@ $(configure)
	cmake --build --preset $@
	ctest --preset $@

arm: $(done)/tools $(done)/gtest ## Builds the kernels for 64-bit Arm and runs their tests in an emulator
	tools/system.sh g++-aarch64-linux-gnu qemu-user-static
	cmake -S . -B build/arm -G Ninja --log-level=WARNING -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake \
	  -DZMLX_KERNELS_ONLY=ON -DZMLX_BUILD_TESTS=ON -DZMLX_WERROR=$(WERROR)
	cmake --build build/arm
	ctest --test-dir build/arm --output-on-failure

clean: ## Removes everything that these targets made
	rm -rf .venv build

$(done)/tools: pyproject.toml
	tools/system.sh libhwy-dev
	test -x $(bin)/python || $(PYTHON) -m venv $(venv)
	pip install -q --upgrade pip
	pip install -q $(build_requirements) "cmake>=3.25" ninja
	mkdir -p $(done) && touch $@

# Built in sight first, so that pip, which hides its work, finds everything done.
$(done)/package: $(done)/tools CMakeLists.txt $(wildcard cmake/*) $(cpp_sources)
	cmake --preset dev $(configure) -DZMLX_WERROR=$(WERROR) -DZMLX_BUILD_TESTS=OFF
	cmake --build --preset dev
	pip install -q --no-build-isolation --config-settings=build-dir=build/dev \
	  --config-settings=cmake.define.ZMLX_WERROR=$(WERROR) --editable '.[cpu,test]'
	touch $@

$(done)/gtest: $(done)/tools
	tools/system.sh libgtest-dev
	touch $@

$(done)/lint: $(done)/tools
	tools/system.sh clang-format-14 clang-tidy-14
	pip install -q ruff==0.17.6
	touch $@
