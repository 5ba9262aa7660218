# zmlx/bench/machine.py: what a result must say about the machine, the versions and the checkout.
"""Facts that belong to every measured number."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from zmlx.version import version_of

# Of the many CPU flags, those that decide which kernels run.
SIMD_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx512_vbmi", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
ENVIRONMENT_PREFIXES = ("ZMLX_", "MLX_", "MLXLM_", "OMP_", "MALLOC_", "GLIBC_TUNABLES")


def machine() -> dict[str, Any]:
    """CPU, cores, memory and the load before the measurement."""
    cpu = _cpu_info()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "simd": [flag for flag in SIMD_FLAGS if flag in cpu.get("flags", "").split()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "device": str(mx.default_device()),
    }


def usable_cores() -> int:
    """Cores that this process may run on (its affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """zmlx's threads: `ZMLX_NUM_THREADS`, by default the usable cores."""
    asked = os.environ.get("ZMLX_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else usable_cores()


def versions() -> dict[str, str]:
    """Of everything that decides the figures."""
    return {
        "zmlx": version_of("zmlx"),
        "mlx": mx.__version__,
        "mlx_lm": version_of("mlx-lm"),
        "python": platform.python_version(),
    }


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables that may change a figure."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(ENVIRONMENT_PREFIXES)
    }


def commit() -> dict[str, Any] | None:
    """The checkout's commit and whether files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return None
    try:
        return {
            "hash": _git(here, "rev-parse", "HEAD"),
            "modified": bool(_git(here, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def resident_bytes() -> int | None:
    """The process's resident set now; None where the system does not tell it."""
    return _status_bytes("VmRSS")


class ResidentPeak:
    """The process's largest resident set since this object was made: MLX's buffers and everything
    else.
    """

    # What the process may grow by between the reset and the look at it.
    TOLERANCE = 16 << 20

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        peak, now = _status_bytes("VmHWM"), resident_bytes()
        self._is_new = peak is not None and now is not None and peak <= now + self.TOLERANCE

    def bytes(self) -> int | None:
        """None where the system tells no peak, or goes on with an older one (some containers)."""
        return _status_bytes("VmHWM") if self._is_new else None


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return int(found.split()[1]) * 1024 if found else None


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; on Arm its `Features` are called flags here."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return {"model name": subprocess.check_output(command, text=True).strip()}
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault({"Features": "flags"}.get(name.strip(), name.strip()), value.strip())
    except OSError:
        pass
    return facts


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.check_output(
        command, text=True, stderr=subprocess.DEVNULL, timeout=10
    ).strip()
