# zmlx/bench/micro.py: single operations: zmlx.ops against stock MLX, eager and compiled.
"""The micro benchmark: `zmlx bench micro`.

A row is one operation at one size and dtype. Outputs are compared first; then the three sides run
in turn, again and again, and a row gives each side's median time and spread. GB/s counts what the
operation must read and write once; `share` is that against the machine's read bandwidth, measured
in the same run. A CPU reads a line before it writes it, so the true traffic of a write is double.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from zmlx import _ext, ops
from zmlx.bench import capsule, machine
from zmlx.files import write_json

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
Function = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """One operation: its inputs for (rows, dtype), zmlx's function and stock MLX's."""

    name: str
    rows: int
    inputs: Callable[[int, mx.Dtype], list[mx.array]]
    fused: Function
    stock: Function
    compare: Callable[[Any], Any] = lambda outputs: outputs


def _normal(*shape: int) -> Callable[[int, mx.Dtype], list[mx.array]]:
    """One array of `rows` rows and that shape."""
    return lambda rows, dtype: [
        mx.random.normal((rows, *shape), key=mx.random.key(1)).astype(dtype)
    ]


def _with(make: Callable, *more: Callable[[int, mx.Dtype], mx.array]) -> Callable:
    return lambda rows, dtype: [*make(rows, dtype), *(one(rows, dtype) for one in more)]


def _stock_swiglu(x: mx.array) -> mx.array:
    gate, up = mx.split(x, 2, axis=-1)
    return nn.silu(gate) * up


def _stock_dropout(x: mx.array, key: mx.array, p: mx.array) -> mx.array:
    kept = mx.random.uniform(shape=x.shape, key=key) >= p
    return mx.where(kept, x * (1 / (1 - p)).astype(x.dtype), mx.array(0, x.dtype))


def _stock_gating(k: int) -> Function:
    def gating(x: mx.array) -> tuple[mx.array, mx.array]:
        scores = mx.softmax(x, axis=-1, precise=True)
        chosen = mx.argpartition(scores, kth=-k, axis=-1)[..., -k:]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        return weights / weights.sum(axis=-1, keepdims=True), chosen

    return gating


def _sorted(outputs: Any) -> mx.array:
    """The weights or values in descending order: partitions have none."""
    values = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return -mx.sort(-values, axis=-1)


def _share_kept(outputs: mx.array) -> mx.array:
    """Random masks differ: their share of ones is what must agree."""
    return (outputs != 0).astype(mx.float32).mean()


LARGE = 16 * 1024
WORKS = (
    Work("swiglu", LARGE, _normal(2048), ops.swiglu, _stock_swiglu),
    Work(
        "dropout p=0.5",
        LARGE,
        _with(
            _normal(1024),
            lambda rows, dtype: mx.random.key(2),
            lambda rows, dtype: mx.array(0.5, mx.float32),
        ),
        lambda x, key, p: ops.dropout(x, p, key),
        _stock_dropout,
        _share_kept,
    ),
    Work(
        "topk k=5",
        LARGE,
        _normal(1024),
        lambda x: ops.topk(x, k=5),
        lambda x: mx.topk(x, 5, axis=-1),
        _sorted,
    ),
    Work(
        "rms_norm",
        LARGE,
        _with(_normal(1024), lambda rows, dtype: mx.ones((1024,), dtype)),
        ops.rms_norm,
        lambda x, weight: mx.fast.rms_norm(x, weight, 1e-5),
    ),
    Work("softmax", LARGE, _normal(1024), ops.softmax, lambda x: mx.softmax(x, axis=-1)),
    Work("sum", LARGE, _normal(1024), ops.sum, lambda x: mx.sum(x, axis=-1)),
    Work(
        "gather_add",
        LARGE,
        _with(
            _normal(1024),
            lambda rows, dtype: mx.random.randint(0, rows, (rows,), key=mx.random.key(3)),
            lambda rows, dtype: mx.random.normal((rows, 1024), key=mx.random.key(4)).astype(dtype),
        ),
        ops.gather_add,
        lambda table, indices, x: table[indices] + x,
    ),
    Work("cumsum", LARGE, _normal(1024), ops.cumsum, lambda x: mx.cumsum(x, axis=-1)),
    Work(
        "moe gating 64, k=2",
        LARGE,
        _normal(64),
        lambda x: ops.moe_topk_gating(x, k=2),
        _stock_gating(2),
        _sorted,
    ),
    Work(
        "moe gating 128, k=8",
        4096,
        _normal(128),
        lambda x: ops.moe_topk_gating(x, k=8),
        _stock_gating(8),
        _sorted,
    ),
)


@dataclass(frozen=True)
class Row:
    """Times in microseconds; `ratio` is the better stock side's median over zmlx's."""

    name: str
    dtype: str
    rows: int
    stock_us: float
    compiled_us: float
    zmlx_us: float
    zmlx_min_us: float
    zmlx_max_us: float
    ratio: float
    gb_per_s: float
    share: float
    difference: float


def _flat(outputs: Any) -> list[mx.array]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _difference(work: Work, dtype: str, inputs: list[mx.array]) -> float:
    """The largest difference from stock in float32, over the larger of an element and the typical.

    Raises:
        ValueError: it is more than the dtype allows.
    """
    exact = [x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x for x in inputs]
    want = np.array(work.compare(work.stock(*exact)).astype(mx.float32))
    got = np.array(work.compare(work.fused(*inputs)).astype(mx.float32))
    size = np.maximum(np.abs(want), max(np.sqrt(np.mean(want**2)), 1e-30))
    error = float(np.max(np.abs(want - got) / size))
    bound = TOLERANCE[dtype] * (10 if work.compare is _share_kept else 1)
    if not error <= bound:
        raise ValueError(f"{work.name}, {dtype}: zmlx and MLX differ by {error:.2g}.")
    return error


def _seconds(function: Function, inputs: list[mx.array], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        mx.eval(function(*inputs))
    return (time.perf_counter() - start) / repeats


def measure(
    dtypes: list[str], budget_s: float = 0.6, only: str = "", small: bool = True
) -> Iterator[Row]:
    """Rows at the large size and, with `small`, of one row; each side gets `budget_s` seconds."""
    bandwidth = float(_ext.read_bandwidth(256 << 20, 5))
    for work in WORKS:
        if only not in work.name:
            continue
        for dtype in dtypes:
            for rows in (work.rows, 1) if small else (work.rows,):
                inputs = work.inputs(rows, DTYPES[dtype])
                mx.eval(inputs)
                difference = _difference(work, dtype, inputs)
                sides: dict[str, Function] = {
                    "zmlx": work.fused,
                    "stock": work.stock,
                    "compiled": mx.compile(work.stock),
                }
                once = {name: _seconds(side, inputs, 1) for name, side in sides.items()}
                repeats = 200 if rows == 1 else 1
                rounds = max(3, min(15, int(budget_s / max(max(once.values()) * repeats, 1e-9))))
                times: dict[str, list[float]] = {name: [] for name in sides}
                for _ in range(rounds):
                    for name, side in sides.items():
                        times[name].append(_seconds(side, inputs, repeats) * 1e6)
                median = {name: statistics.median(values) for name, values in times.items()}
                outputs = _flat(work.fused(*inputs))
                moved = sum(x.nbytes for x in inputs) + sum(y.nbytes for y in outputs)
                speed = moved / median["zmlx"] * 1e-3
                yield Row(
                    name=work.name,
                    dtype=dtype,
                    rows=rows,
                    stock_us=median["stock"],
                    compiled_us=median["compiled"],
                    zmlx_us=median["zmlx"],
                    zmlx_min_us=min(times["zmlx"]),
                    zmlx_max_us=max(times["zmlx"]),
                    ratio=min(median["stock"], median["compiled"]) / median["zmlx"],
                    gb_per_s=speed,
                    share=speed * 1e9 / bandwidth,
                    difference=difference,
                )


@click.command("micro")
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), help="Repeat it."
)
@click.option("--only", default="", help="Rows whose name has this text.")
@click.option("--seconds", default=0.6, show_default=True, help="For each side of a row.")
@click.option("--small/--no-small", default=True, help="Also one row of each operation.")
@click.option("--threads", type=click.IntRange(1), help="By default every core it may use.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Result.")
def command(
    dtypes: tuple[str, ...],
    only: str,
    seconds: float,
    small: bool,
    threads: int | None,
    out: Path | None,
) -> None:
    """Single operations: zmlx.ops against stock MLX, eager and compiled."""
    mx.set_default_device(mx.cpu)
    if threads is not None:
        os.environ["ZMLX_NUM_THREADS"] = str(threads)
    document: dict[str, Any] = {
        "command": " ".join(capsule.command_line()),
        "created": capsule.now(),
        "machine": machine.machine(),
        "threads": machine.threads(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "rows": [],
    }
    click.echo(
        f"{'operation':20s} {'dtype':9s} {'rows':>6s} {'eager, us':>11s} {'compiled':>11s} "
        f"{'zmlx':>10s} {'spread':>15s} {'ratio':>8s} {'GB/s':>6s} {'share':>6s}"
    )
    for row in measure(list(dtypes) or list(DTYPES), seconds, only, small):
        document["rows"].append(asdict(row))
        click.echo(
            f"{row.name:20s} {row.dtype:9s} {row.rows:6d} {row.stock_us:11.1f} "
            f"{row.compiled_us:11.1f} {row.zmlx_us:10.1f} "
            f"{row.zmlx_min_us:7.1f}-{row.zmlx_max_us:7.1f} {row.ratio:7.1f}x "
            f"{row.gb_per_s:6.1f} {row.share:6.0%}"
        )
        if out:
            write_json(out, document)
