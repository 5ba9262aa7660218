#!/usr/bin/env bash
# tools/system.sh: checks what only the operating system can give, and installs the Debian packages named as arguments.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

python=${PYTHON:-python3}
compiler=${CXX:-c++}

packages=()
for package in "$@"; do
  if command -v dpkg-query >/dev/null &&
    ! dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
    packages+=("$package")
  fi
done

if ! command -v "$python" >/dev/null; then
  say "zmlx needs Python 3.10 or later, but there is no '$python'. Install it (apt-get install python3), or"
  say "name one: make PYTHON=/path/to/python3"
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  say "zmlx needs Python 3.10 or later, but '$python' is $("$python" -V 2>&1). Name another: make PYTHON=/path/to/python3"
  exit 1
fi
# Debian splits these from Python itself; an interpreter from elsewhere has them.
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
venv_ok() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
header_ok() {
  "$python" -c 'import os, sys, sysconfig; p = sysconfig.get_path("include")
sys.exit(not os.path.exists(p + "/Python.h"))'
}
venv_ok || packages+=("$version-venv")
header_ok || packages+=("$version-dev")

if ((${#packages[@]})); then
  if ! command -v apt-get >/dev/null; then
    say "missing: ${packages[*]} (the names are Debian's). Install them with this system's package manager."
    exit 1
  elif ((EUID == 0)); then
    say "installing with apt-get: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  else
    say "missing Debian packages. Install them and run make again:"
    say "  sudo apt-get install -y ${packages[*]}"
    exit 1
  fi
fi

if ! command -v "$compiler" >/dev/null; then
  say "zmlx needs a C++20 compiler (g++ 11 or clang 16, or later), but there is no '$compiler'. Install one"
  say "(apt-get install g++), or name one: make CXX=/path/to/compiler"
  exit 1
fi
if ! printf '%s\n' '#include <concepts>' '#include <span>' 'int main() { return std::span<int>().size(); }' |
  "$compiler" -std=c++20 -x c++ -fsyntax-only -; then
  say "'$compiler' does not compile C++20. zmlx needs g++ 11 or clang 16, or later: make CXX=/path/to/compiler"
  exit 1
fi
