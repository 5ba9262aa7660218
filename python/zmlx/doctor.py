# zmlx/doctor.py: whether this machine and installation are fit for zmlx, and what to do if not.
"""`zmlx doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from zmlx import _ext
from zmlx.bench import capsule, machine
from zmlx.presets import cache_folder
from zmlx.version import MLX_PACKAGE

OK, WARNING, FAILURE = "ok", "warning", "failure"
READ_BYTES = 256 << 20  # far beyond any cache
READ_PASSES = 8
LAUNCHES = 2000
COMPILERS = ("c++", "g++", "clang++")
# Highway's names for no vectors at all.
NO_SIMD = ("SCALAR", "EMU128")


def examine(out: Path | None = None) -> dict[str, Any]:
    """Checks everything; returns the capsule of kind "doctor", and writes it if asked to."""
    document = {
        **capsule.envelope("doctor", None, {}),
        "checks": [],
        "read_bandwidth_bytes_per_s": None,
        "launch_s": None,
        "barrier_s": None,
    }

    def save() -> None:
        if out is not None:
            capsule.write(out, document)

    with capsule.recording(document, save):
        document["checks"] += [
            check("python", OK, f"{platform.python_version()}, {sys.executable}"),
            *packages(),
            devices(),
            simd(_ext.cpu_kernels()),
            threads(_ext.num_threads(), machine.usable_cores()),
            *speed(document),
            compiler(os.environ),
            cache(cache_folder().parent),
        ]
    return document


def check(name: str, status: str, found: str, remedy: str | None = None) -> dict[str, Any]:
    """One line of the result; the remedy is a command or a setting."""
    return {"name": name, "status": status, "found": found, "remedy": remedy}


def packages() -> list[dict[str, Any]]:
    """Versions, and whether they are those that zmlx was built and tested with."""
    wanted = {"mlx": _ext.mlx_version, **_pins()}
    found = machine.versions()
    checks = [check("zmlx", OK, f"{found['zmlx']}, built for mlx {_ext.mlx_version}")]
    for name, version in (("mlx", mx.__version__), ("mlx-lm", found["mlx_lm"])):
        checks.append(fits(name, version, wanted.get(name)))
    for name in ("scipy", "jsonschema", "rich", "click", "tokenizers"):
        checks.append(present(name))
    return checks


def fits(name: str, version: str, wanted: str | None) -> dict[str, Any]:
    """Whether a package has the one version that fits."""
    if wanted is None or version == wanted:
        return check(name, OK, version)
    package = MLX_PACKAGE if name == "mlx" else name
    remedy = f'{sys.executable} -m pip install "{package}=={wanted}"'
    return check(name, FAILURE, f"{version}, but {wanted} is needed", remedy)


def present(name: str) -> dict[str, Any]:
    """Whether a package can be imported."""
    if importlib.util.find_spec(name) is None:
        return check(name, FAILURE, "missing", f"{sys.executable} -m pip install {name}")
    return check(name, OK, metadata.version(name))


def devices() -> dict[str, Any]:
    """MLX's devices; patched models run on the CPU and on GPUs of CUDA."""
    others = [name for name in ("cuda", "metal") if _has(name)]
    found = f"default {mx.default_device().type.name}; also {', '.join(others) or 'none'}"
    why = _ext.why_no_cuda()
    if mx.default_device() != mx.Device(mx.cpu, 0) and why:
        return check("devices", WARNING, f"{found}; {why}", "mx.set_default_device(mx.cpu)")
    return check("devices", OK, found)


def simd(kernels: list[str]) -> dict[str, Any]:
    """The instruction sets of the kernels that this CPU gets."""
    status = WARNING if kernels[0] in NO_SIMD else OK
    remedy = None if status == OK else "this CPU has no vectors that zmlx knows: it will be slow"
    return check("instruction sets", status, ", ".join(kernels), remedy)


def threads(count: int, cores: int) -> dict[str, Any]:
    """More threads than cores wait for each other at every barrier."""
    found = f"{count} on {cores} usable cores"
    if count > cores:
        return check("threads", WARNING, found, f"export ZMLX_NUM_THREADS={cores}")
    return check("threads", OK, found)


def speed(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Measures read bandwidth and the cost of a launch, into the document."""
    rate = _ext.read_bandwidth(READ_BYTES, READ_PASSES)
    launch, barrier = _ext.launch_seconds(LAUNCHES), _ext.barrier_seconds(LAUNCHES)
    document.update(read_bandwidth_bytes_per_s=rate, launch_s=launch, barrier_s=barrier)
    load = os.getloadavg()[0]
    busy = load > machine.usable_cores()
    found = f"{rate / 1e9:.1f} GB/s with {_ext.num_threads()} threads"
    remedy = f"load {load:.1f}: measure again when nothing else runs" if busy else None
    cost = f"{1e6 * launch:.1f} us a launch, {1e6 * barrier:.2f} us a barrier"
    return [
        check("read bandwidth", WARNING if busy else OK, found, remedy),
        check("launch cost", OK, cost),
    ]


def compiler(environment: Mapping[str, str]) -> dict[str, Any]:
    """The C++ compiler, for building zmlx and for kernels of one's own."""
    names = [environment["CXX"]] if environment.get("CXX") else COMPILERS
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        install = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
        return check("compiler", WARNING, f"none of {', '.join(names)}", install)
    return check("compiler", OK, path)


def cache(folder: Path) -> dict[str, Any]:
    """Whether decisions, presets and compiled kernels can be kept, and by nobody else changed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"mkdir -p {folder} && chmod u+rwx {folder}, or export XDG_CACHE_HOME=..."
        return check("cache folder", FAILURE, f"{folder}: {error.strerror}", remedy)
    mode = folder.stat().st_mode
    found = f"{folder}, {stat.filemode(mode)}"
    if mode & stat.S_IWOTH:
        return check("cache folder", WARNING, f"{found}: anybody may write", f"chmod o-w {folder}")
    return check("cache folder", OK, found)


def _has(name: str) -> bool:
    module = getattr(mx, name, None)
    return bool(module and module.is_available())


def _pins() -> dict[str, str]:
    """The exact versions that the installed package asks for; empty in a bare checkout."""
    try:
        needed = metadata.requires("zmlx") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([a-z-]+)(?:\[\w+\])?==([\w.]+)$", line) for line in needed)
    return {match[1]: match[2] for match in found if match}
