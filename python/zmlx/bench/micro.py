# zmlx/bench/micro.py: single operations: zmlx.ops against stock MLX, eager and compiled.
"""The micro benchmark: `zmlx bench micro`.

A row is one operation at one size and dtype. Outputs are compared first; then the sides run in
turn, again and again, and a row gives each side's median time and spread. GB/s counts every byte
that the operation must read or write, once. `limit` is what the machine's memory does at best for
that mix of reads and writes, measured in turn with the sides: a plain loop of zmlx's threads that
reads one or two arrays (`read`), and writes a third past the caches (`copy`, `triad`). `share` is
the operation's GB/s over the limit's; `of read` is its share of the bandwidth for reads alone,
which no operation that writes can reach.
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
    mix: str = "copy"
    compare: Callable[[Any], Any] = lambda outputs: outputs


# What a limit reads and whether it writes, in arrays of one size.
MIXES = {"read": (1, False), "copy": (1, True), "triad": (2, True)}
LIMIT_BYTES = 64 << 20


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
SIZES = ("large", "row")
WORKS = (
    Work("swiglu", LARGE, _normal(2048), ops.swiglu, _stock_swiglu, "triad"),
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
        "copy",
        _share_kept,
    ),
    Work(
        "topk k=5",
        LARGE,
        _normal(1024),
        lambda x: ops.topk(x, k=5),
        lambda x: mx.topk(x, 5, axis=-1),
        "read",
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
    Work("sum", LARGE, _normal(1024), ops.sum, lambda x: mx.sum(x, axis=-1), "read"),
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
        "triad",
    ),
    Work("cumsum", LARGE, _normal(1024), ops.cumsum, lambda x: mx.cumsum(x, axis=-1)),
    Work(
        "moe gating 64, k=2",
        LARGE,
        _normal(64),
        lambda x: ops.moe_topk_gating(x, k=2),
        _stock_gating(2),
        "read",
        _sorted,
    ),
    Work(
        "moe gating 128, k=8",
        4096,
        _normal(128),
        lambda x: ops.moe_topk_gating(x, k=8),
        _stock_gating(8),
        "read",
        _sorted,
    ),
)


@dataclass(frozen=True)
class Times:
    """Microseconds of a call over the samples."""

    median_us: float
    min_us: float
    max_us: float
    samples: int


@dataclass(frozen=True)
class Row:
    """`ratio` is the better stock side's median over zmlx's. At one row there is no limit: what a
    call costs is not memory's."""

    name: str
    dtype: str
    rows: int
    stock: Times
    compiled: Times
    zmlx: Times
    ratio: float
    bytes: int
    gb_per_s: float
    mix: str
    limit_gb_per_s: float | None
    read_gb_per_s: float | None
    share: float | None
    share_of_read: float | None
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


def _times(samples: list[float]) -> Times:
    micro = [sample * 1e6 for sample in samples]
    return Times(statistics.median(micro), min(micro), max(micro), len(micro))


def _limits(mix: str) -> dict[str, Function]:
    """The limit of a mix and that of reads, as sides that return their seconds."""
    streams = _ext.Streams(LIMIT_BYTES)
    return {
        name: lambda arguments=MIXES[name]: streams.seconds(*arguments)
        for name in dict.fromkeys((mix, "read"))
    }


def _measure_row(work: Work, dtype: str, rows: int, seconds: float) -> Row:
    inputs = work.inputs(rows, DTYPES[dtype])
    mx.eval(inputs)
    difference = _difference(work, dtype, inputs)
    sides = {"zmlx": work.fused, "stock": work.stock, "compiled": mx.compile(work.stock)}
    large = rows == work.rows
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    limits = _limits(work.mix) if large and on_cpu else {}
    once = max(_seconds(side, inputs, 1) for side in sides.values())
    repeats = 1 if large else 50
    rounds = max(3, min(15, int(seconds / max(once * repeats, 1e-9))))
    # Where stock leaves time for few rounds, the short sides are timed several times in each.
    times = {name: 1 if name in ("stock", "compiled") else -(-15 // rounds) for name in sides}
    samples: dict[str, list[float]] = {name: [] for name in (*sides, *limits)}
    for _ in range(rounds):
        for name, side in sides.items():
            for _ in range(times[name]):
                samples[name].append(_seconds(side, inputs, repeats))
        for name, limit in limits.items():
            for _ in range(times["zmlx"]):
                samples[name].append(limit())
    result = {name: _times(values) for name, values in samples.items()}
    moved = sum(array.nbytes for array in (*inputs, *_flat(work.fused(*inputs))))
    speed = moved / result["zmlx"].median_us * 1e-3
    bandwidth = {
        name: LIMIT_BYTES * (MIXES[name][0] + MIXES[name][1]) / result[name].median_us * 1e-3
        for name in limits
    }
    limit, read = bandwidth.get(work.mix), bandwidth.get("read")
    return Row(
        name=work.name,
        dtype=dtype,
        rows=rows,
        stock=result["stock"],
        compiled=result["compiled"],
        zmlx=result["zmlx"],
        ratio=min(result["stock"].median_us, result["compiled"].median_us)
        / result["zmlx"].median_us,
        bytes=moved,
        gb_per_s=speed,
        mix=work.mix,
        limit_gb_per_s=limit,
        read_gb_per_s=read,
        share=speed / limit if limit else None,
        share_of_read=speed / read if read else None,
        difference=difference,
    )


def measure(
    dtypes: list[str], seconds: float = 0.6, only: str = "", sizes: tuple[str, ...] = SIZES
) -> Iterator[Row]:
    """Rows at the sizes asked for; each side gets about `seconds`."""
    for work in WORKS:
        if only in work.name:
            for dtype in dtypes:
                for size in sizes:
                    yield _measure_row(work, dtype, work.rows if size == "large" else 1, seconds)


HEADER = (
    f"{'operation':20s} {'dtype':9s} {'rows':>6s} {'eager, us':>10s} {'compiled':>10s} "
    f"{'zmlx':>9s} {'spread':>17s} {'ratio':>7s} {'GB/s':>6s} {'limit':>6s} {'share':>6s} "
    f"{'of read':>7s}"
)


def _line(row: Row) -> str:
    spread = f"{row.zmlx.min_us:.1f}-{row.zmlx.max_us:.1f}"
    text = (
        f"{row.name:20s} {row.dtype:9s} {row.rows:6d} {row.stock.median_us:10.1f} "
        f"{row.compiled.median_us:10.1f} {row.zmlx.median_us:9.1f} {spread:>17s} "
        f"{row.ratio:6.2f}x {row.gb_per_s:6.1f}"
    )
    if row.share is None:
        return text
    return f"{text} {row.limit_gb_per_s:6.1f} {row.share:6.0%} {row.share_of_read:7.0%}"


def _earlier(out: Path, document: dict[str, Any]) -> None:
    """Takes over the rows and parts of an earlier result of the same machine and settings."""
    before = capsule.read(out)
    if before["kind"] != "micro":
        raise click.UsageError(f"{out} is no result of the micro benchmark.")
    for field in ("machine", "versions", "settings"):
        ours, theirs = dict(document[field]), dict(before[field])
        for changing in ("load_average",):
            ours.pop(changing, None), theirs.pop(changing, None)
        if ours != theirs:
            raise click.UsageError(f"{out} was measured with another {field[:-1]} of this name.")
    document["rows"] = before["rows"]
    document["parts"] = before["parts"]


@click.command("micro")
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), help="Repeat it."
)
@click.option("--only", default="", help="Rows whose name has this text.")
@click.option("--seconds", default=0.6, show_default=True, help="For each side of a row.")
@click.option(
    "--size", "sizes", multiple=True, type=click.Choice(SIZES), help="Repeat it; both by default."
)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="By default every core it may use.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Result.")
@click.option("--append", is_flag=True, help="Add the rows to those of the JSON file.")
def command(
    dtypes: tuple[str, ...],
    only: str,
    seconds: float,
    sizes: tuple[str, ...],
    device: str,
    threads: int | None,
    out: Path | None,
    append: bool,
) -> None:
    """Single operations: zmlx.ops against stock MLX, eager and compiled."""
    if device == "gpu" and not mx.is_available(mx.gpu):
        raise click.UsageError("MLX has no GPU here.")
    mx.set_default_device(mx.Device(getattr(mx, device)))
    if threads is not None:
        os.environ["ZMLX_NUM_THREADS"] = str(threads)
    settings = {"device": device, "threads": machine.threads(), "seconds": seconds}
    document = capsule.envelope("micro", None, settings)
    document |= {"rows": [], "parts": []}
    if append and out and out.exists():
        _earlier(out, document)
    part = {key: document[key] for key in ("command", "commit", "started")}
    document["parts"] = [*document["parts"], part]

    def save() -> None:
        if out:
            capsule.write(out, document)

    click.echo(HEADER)
    with capsule.recording(document, save):
        for row in measure(list(dtypes) or list(DTYPES), seconds, only, sizes or SIZES):
            click.echo(_line(row))
            same = ("name", "dtype", "rows")
            new = asdict(row)
            document["rows"] = [
                old for old in document["rows"] if any(old[key] != new[key] for key in same)
            ] + [new]
