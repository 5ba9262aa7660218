#!/usr/bin/env bash
# tools/tidy.sh BUILD FILE: runs clang-tidy on one file; prints only what it finds.
set -euo pipefail

# The build folder's flags may be those of another compiler. One instruction set shows all that the others
# would, and that a machine with a single one (Arm) can compile the code.
arguments=(-Wno-unknown-warning-option -DHWY_COMPILE_ONLY_STATIC)
if [[ $(uname -m) == x86_64 ]]; then
  arguments+=(-march=haswell)
fi
if ! found=$(clang-tidy-14 -quiet "${arguments[@]/#/--extra-arg=}" -p "$1" "$2" 2>&1); then
  printf '%s\n' "$found"
  exit 1
fi
