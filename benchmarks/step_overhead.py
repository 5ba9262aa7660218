#!/usr/bin/env python3
# benchmarks/step_overhead.py: what a call of a patched model costs beyond its arithmetic.
"""Times `model(token, cache=cache)` and its evaluation on a model of tiny width.

    python benchmarks/step_overhead.py --json benchmarks/results/step_overhead.json

The preset `deep` has 48 mixture of experts layers of width 64: hardly any arithmetic, every node.
`overhead` is the time of the call and its evaluation less the time inside the plan's kernels and
their barriers, taken on the thread that runs them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.models.cache import make_prompt_cache

from zmlx import _ext, presets
from zmlx.bench import machine
from zmlx.files import write_json
from zmlx.patch import patch, unpatch


def measure(model: Any, steps: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each step: the call, the call and its evaluation, and what is not arithmetic."""
    cache = make_prompt_cache(model)
    token = mx.array([[5]])
    samples: dict[str, list[float]] = {"call": [], "total": [], "overhead": []}
    for i in range(warm_up + steps):
        inside = _ext.run_counts()["seconds"]
        start = time.perf_counter()
        logits = model(token, cache=cache)
        called = time.perf_counter()
        mx.eval(logits)
        end = time.perf_counter()
        if i >= warm_up:
            samples["call"].append(called - start)
            samples["total"].append(end - start)
            samples["overhead"].append(end - start - (_ext.run_counts()["seconds"] - inside))
    return samples


def summary(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum in microseconds."""
    return {
        name: {
            "median": statistics.median(values) * 1e6,
            "min": min(values) * 1e6,
            "max": max(values) * 1e6,
        }
        for name, values in samples.items()
    }


def main() -> None:
    """Measures stock and patched and prints both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deep", help="a preset")
    parser.add_argument("--steps", type=int, default=500, help="patched steps")
    parser.add_argument("--stock-steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.load(str(presets.write(options.model)))[:2]

    stock = measure(model, options.stock_steps, warm_up=3)
    patch(model)
    report = model.zmlx
    patched = measure(model, options.steps, warm_up=50)
    unpatch(model)
    result = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": machine.machine(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "model": options.model,
        "threads": _ext.num_threads(),
        "launches": report.launches,
        "patch_seconds": report.seconds,
        "unit": "microseconds",
        "stock": summary({"total": stock["total"]}),
        "patched": summary(patched),
    }
    for side in ("stock", "patched"):
        for name, values in result[side].items():
            print(
                f"{side:8} {name:9} {values['median']:9.1f} us  "
                f"({values['min']:.1f} to {values['max']:.1f})"
            )
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
