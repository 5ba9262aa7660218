#!/usr/bin/env python3
# benchmarks/gpu/memory.py: does memory grow while a patched model decodes?
"""Decodes tokens in one go and tells memory along the way.

    python benchmarks/gpu/memory.py --tokens 10000 --json OUT

What MLX has in use less the KV cache's buffers, and the process's resident memory, must stay where
they were after the first token. Ends with status 1 where either grew by more than `--bound` bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from inference import header
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from zmlx import presets
from zmlx.bench import machine
from zmlx.files import write_json
from zmlx.patch import patch


def measure(model_name: str, tokens: int, every: int) -> dict[str, Any]:
    model, _, _ = presets.draw(presets.Settings(model_name))
    patch(model)
    if not model.zmlx.patched:
        raise SystemExit(f"memory.py: {model_name} was not patched: {model.zmlx.reasons}")
    cache = make_prompt_cache(model)
    rows = []
    start = time.perf_counter()
    steps = generate_step(mx.array([11]), model, max_tokens=tokens + 1, prompt_cache=cache)
    for i, _ in enumerate(steps):
        if i % every == 0:
            kv = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache)
            rows.append(
                {
                    "tokens": i,
                    "seconds": time.perf_counter() - start,
                    "kv_bytes": kv,
                    "other_bytes": mx.get_active_memory() - kv,
                    "resident_bytes": machine.resident_bytes(),
                }
            )
            print(rows[-1], flush=True)
    return {"rows": rows, "stock_calls": sum(model.zmlx.stock_calls.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen3-30b-a3b", help="a preset")
    parser.add_argument("--tokens", type=int, default=10000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--bound", type=int, default=16 << 20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = header("memory.py") | {"model": arguments.model}
    result |= measure(arguments.model, arguments.tokens, arguments.every)
    if arguments.json:
        write_json(arguments.json, result)
    first, *rest = result["rows"]
    grew = {
        name: max((row[name] - first[name] for row in rest if first[name] is not None), default=0)
        for name in ("other_bytes", "resident_bytes")
    }
    print("largest growth, bytes:", grew)
    return int(any(growth > arguments.bound for growth in grew.values()))


if __name__ == "__main__":
    sys.exit(main())
