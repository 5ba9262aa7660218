#!/usr/bin/env bash
# tools/tidy.sh BUILD FILE: runs clang-tidy on one file; prints only what it finds.
set -euo pipefail
# The build folder's flags may be those of another compiler.
if ! found=$(clang-tidy-14 -quiet --extra-arg=-Wno-unknown-warning-option -p "$1" "$2" 2>&1); then
  printf '%s\n' "$found"
  exit 1
fi
