# tests/python/test_layout.py: which folder may include which, and facts that stand in two files.
"""The layers of the C++ code, as its includes show them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a layer may include besides itself. `base` is the part of runtime/ below everything.
MAY_INCLUDE = {
    "base": set(),
    "kernel": {"base"},
    "ops": {"base", "kernel"},
    "graph": {"base", "ops", "runtime"},
    "runtime": {"base", "kernel", "ops", "graph"},
    "patterns": {"base", "ops", "runtime", "graph"},
    "plan": {"base", "ops", "runtime", "graph"},
}
BASE = tuple(f"zmlx/runtime/{name}" for name in ("cores", "error", "team", "tensor"))
# In graph/ these stand between MLX's arrays and our graph; the rest of it knows no MLX.
KNOW_MLX = ("capture", "compiled", "primitives")

SOURCES = sorted(p for p in (ROOT / "zmlx").rglob("*") if p.suffix in (".cpp", ".h"))


def layer(path: str) -> str:
    """The layer of a path that begins with zmlx/."""
    return "base" if path.startswith(BASE) else path.split("/")[1]


def includes(text: str) -> list[str]:
    """What a C++ source includes with quotes."""
    return re.findall(r'^\s*#\s*include "([^"]+)"', text, re.MULTILINE)


def wrong_includes(path: str, text: str) -> list[str]:
    """Includes of our own files that point up or sideways."""
    here = layer(path)
    allowed = MAY_INCLUDE[here] | {here}
    ours = [name for name in includes(text) if name.startswith("zmlx/")]
    return [name for name in ours if layer(name) not in allowed]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_includes_only_layers_below_its_own(path: Path) -> None:
    assert wrong_includes(path.relative_to(ROOT).as_posix(), path.read_text()) == []


def test_an_include_upwards_is_noticed() -> None:
    upwards = '#include "zmlx/patterns/pattern.h"\n'
    assert wrong_includes("zmlx/ops/swiglu.cpp", upwards) == ["zmlx/patterns/pattern.h"]
    assert wrong_includes("zmlx/runtime/team.cpp", '#include "zmlx/ops/op.h"\n') == [
        "zmlx/ops/op.h"
    ]


def test_kernels_the_base_and_the_graph_know_no_mlx() -> None:
    def must_not_know(path: Path) -> bool:
        here = layer(path.relative_to(ROOT).as_posix())
        return here in ("base", "kernel") or (here == "graph" and path.stem not in KNOW_MLX)

    knowing = [
        path.name
        for path in SOURCES
        if must_not_know(path)
        and any(name.startswith("mlx/") for name in includes(path.read_text()))
    ]
    assert knowing == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_first_line_says_what_the_file_is(path: Path) -> None:
    first = path.read_text().split("\n", 1)[0]
    assert first.startswith(f"// {path.relative_to(ROOT).as_posix()}: ")


def test_the_versions_of_mlx_agree() -> None:
    cmake = re.search(r"set\(ZMLX_MLX_VERSION (\S+)\)", (ROOT / "CMakeLists.txt").read_text())
    assert cmake
    pins = re.findall(
        r'"mlx(?:\[(?:cpu|cuda13)\])?==([0-9.]+)', (ROOT / "pyproject.toml").read_text()
    )
    assert pins == [cmake[1]] * 4  # to build, any backend, the CPU's, CUDA's
