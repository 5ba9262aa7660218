#!/usr/bin/env python3
# benchmarks/gpu/inference.py: stock and patched mlx_lm, and llama.cpp, on one GPU in one run.
"""Times prompts and decoding at several depths, and batches, on a model with random weights.

    python benchmarks/gpu/inference.py --model qwen3-30b-a3b --json OUT [--llama-bench PROGRAM GGUF]

Both sides run `mlx_lm.stream_generate` in one process on the same weights, in alternation; batches
go through mlx_lm's BatchGenerator. A prompt of n tokens followed by a generation gives the prompt's
speed and the speed of decoding at depth n. Weights are drawn on the device: this measures speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from zmlx import presets
from zmlx.bench import machine
from zmlx.bench.batch import measure as measure_batches
from zmlx.bench.inference import Share, endless, generate
from zmlx.bench.statistics import alternate
from zmlx.files import write_json
from zmlx.patch import patch, unpatch


def device_memory_used() -> int | None:
    """Bytes in use on the device by every process, as its driver counts them."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.check_output(query, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return int(text.split()[0]) << 20


def header(program: str) -> dict[str, Any]:
    """What a result says of where it comes from."""
    if mx.default_device().type != mx.DeviceType.gpu:
        raise SystemExit(f"{program} needs MLX with a GPU: pip install 'zmlx[cuda13]'")
    return {
        "command": " ".join(["python", f"benchmarks/gpu/{program}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.machine() | {"gpu": mx.device_info()["device_name"]},
        "versions": machine.versions(),
        "commit": machine.commit(),
    }


def prompt_of(tokens: int, vocabulary: int) -> list[int]:
    """The same tokens for every side."""
    key = mx.random.key(tokens)
    return mx.random.randint(8, vocabulary, (tokens,), key=key).tolist()


def measure(
    model: Any, tokenizer: Any, vocabulary: int, depths: list[int], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a depth and side: every run's tokens a second; the memory of MLX and the device."""
    rows = []
    for depth in depths:
        prompt = prompt_of(max(depth, 1), vocabulary)
        runs: dict[str, list[dict[str, Any]]] = {"stock": [], "patched": []}
        memory: dict[str, int | None] = {}
        for side in alternate(arguments.stock_runs, arguments.runs):
            count = arguments.stock_tokens if side == "stock" else arguments.tokens
            if side == "patched":
                patch(model)
                generate(model, tokenizer, Share(prompt, 4))  # plans and kernels for this length
            elif not runs["stock"]:
                generate(model, tokenizer, Share(prompt[:64], 4))
            figures, _ = generate(model, tokenizer, Share(prompt, count))
            memory[side] = device_memory_used()
            runs[side].append(figures)
            if side == "patched":
                report = model.zmlx
                stock_calls = dict(report.stock_calls)
                unpatch(model)
        for side, figures in runs.items():
            row = {
                "side": side,
                "depth": depth,
                "prompt_tps": [run["prompt_tps"] for run in figures],
                "decode_tps": [run["generation_tps"] for run in figures],
                "mlx_peak_bytes": max(run["peak_memory_bytes"] for run in figures),
                "device_bytes": memory[side],
            }
            if side == "patched":
                row["stock_calls"] = stock_calls
                both = list(zip(runs["stock"][0]["tokens"], figures[0]["tokens"], strict=False))
                row["equal_first_tokens"] = next(
                    (i for i, (a, b) in enumerate(both) if a != b), len(both)
                )
            rows.append(row)
            print(
                f"{side:8s} depth {depth:6d}: prompt {statistics.median(row['prompt_tps']):9.1f}"
                f" tok/s, decode {statistics.median(row['decode_tps']):8.1f} tok/s,"
                f" MLX {row['mlx_peak_bytes'] / 1e9:.2f} GB, device"
                f" {(row['device_bytes'] or 0) / 1e9:.2f} GB",
                flush=True,
            )
    return rows


def llama(program: str, model: str, depths: list[int]) -> list[dict[str, Any]]:
    """llama-bench's own JSON rows: prompts of those lengths, then decoding at those depths."""
    prompts = ",".join(str(n) for n in depths if n)
    common = [program, "-m", model, "-ngl", "99", "-fa", "1", "-r", "3", "-o", "json"]
    rows = []
    for more in (
        ["-p", prompts, "-n", "0"],
        ["-p", "0", "-n", "128", "-d", ",".join(map(str, depths))],
    ):
        text = subprocess.check_output([*common, *more], text=True, stderr=subprocess.DEVNULL)
        for row in json.loads(text):
            rows.append(
                {
                    "side": "llama.cpp",
                    "prompt": row["n_prompt"],
                    "decode": row["n_gen"],
                    "depth": row["n_depth"],
                    "tps": row["samples_ts"],
                    "build": row["build_commit"],
                }
            )
            print("llama.cpp", rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen3-30b-a3b", help="a preset")
    parser.add_argument("--layers", type=int, help="cut the preset to so many layers")
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 512, 4096, 16384])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=256, help="decoded by the patched side")
    parser.add_argument("--stock-tokens", type=int, default=48)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--stock-runs", type=int, default=1)
    parser.add_argument("--llama-bench", nargs=2, metavar=("PROGRAM", "GGUF"))
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    result = header("inference.py")

    start = time.perf_counter()
    model, tokenizer, config = presets.draw(
        presets.Settings(arguments.model, layers=arguments.layers)
    )
    print(f"model drawn in {time.perf_counter() - start:.1f} s", flush=True)
    vocabulary = config["vocab_size"]
    result |= {
        "model": arguments.model,
        "config": config,
        "rows": [],
        "batches": [],
        "llama.cpp": [],
    }
    with endless(tokenizer):
        result["rows"] = measure(model, tokenizer, vocabulary, arguments.depths, arguments)
        write_json(arguments.json, result)
        if arguments.batches:
            batches = measure_batches(model, vocabulary, arguments.batches, 512, 64, 1)
            for row in batches:
                result["batches"].append(vars(row))
                print(row, flush=True)
                write_json(arguments.json, result)
    if arguments.llama_bench:
        del model
        mx.clear_cache()
        result["llama.cpp"] = llama(*arguments.llama_bench, arguments.depths)
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
