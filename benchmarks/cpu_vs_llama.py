#!/usr/bin/env python3
# benchmarks/cpu_vs_llama.py: patched mlx_lm against llama.cpp on the CPU, same geometry and bytes.
"""Builds llama.cpp, writes models of equal geometry for both, and times them in alternation.

    pip install gguf
    python benchmarks/cpu_vs_llama.py --model small --threads 1 2 --json OUT
    python benchmarks/cpu_vs_llama.py --model small --threads 1 2 --json OUT --append

The second command adds its rounds to those in OUT, so that a comparison may be made of short
pieces; `--prompts` or `--depths` without a number leave that part out. `--activations int8` patches
with 8-bit activations, as llama.cpp's own are.

llama.cpp comes from the source distribution of llama-cpp-python, built for this machine, and runs
with repacked weights in huge pages, its fastest setting. Its Q4_0 weights take 4.5 bits each, as do
MLX's 4-bit weights in groups of 64 with bfloat16 scales and biases. Both sides get their memory in
huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`). Weights are random: this measures speed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from zmlx import presets
from zmlx.bench import machine
from zmlx.files import write_json

PACKAGE = "llama-cpp-python==0.3.36"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "OFF",
    # GCC 12 takes the tiles' configuration to be 8 bytes long, and drops the stores to the rest.
    "CMAKE_CXX_FLAGS": "-fno-tree-dse -fno-dse",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


def build_llama(folder: Path) -> Path:
    """Path of `llama-bench`, built in `folder` unless it is there."""
    program = folder / "build" / "bin" / "llama-bench"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]
    subprocess.run([*pip, "-d", str(folder), PACKAGE], check=True)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    defines = [f"-D{name}={value}" for name, value in CMAKE_OPTIONS.items()]
    subprocess.run(
        ["cmake", "-S", str(source), "-B", str(folder / "build"), "-G", "Ninja", *defines],
        check=True,
    )
    subprocess.run(
        ["cmake", "--build", str(folder / "build"), "--target", "llama-bench"], check=True
    )
    return program


def q4_0(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Random Q4_0 blocks: for 32 weights a float16 scale and 16 bytes of codes."""
    *rows, columns = shape
    blocks = np.empty((*rows, columns // 32, 18), np.uint8)
    # Codes 0 to 15 less 8 have a standard deviation of 4.61.
    blocks[..., :2] = np.frombuffer(np.float16(deviation / 4.61).tobytes(), np.uint8)
    blocks[..., 2:] = rng.integers(0, 256, (*rows, columns // 32, 16), np.uint8)
    return blocks.reshape(*rows, columns // 32 * 18)


def write_gguf(path: Path, config: dict[str, Any]) -> None:
    """A model of the geometry of an mlx_lm config (qwen3_moe, qwen3 or llama), in Q4_0."""
    try:
        import gguf
    except ImportError as error:
        raise SystemExit("cpu_vs_llama.py needs the package gguf: pip install gguf") from error
    kind = config["model_type"]
    hidden, heads, kv_heads = (
        config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head, vocabulary = config["head_dim"], config["vocab_size"]
    is_moe = kind == "qwen3_moe"
    writer = gguf.GGUFWriter(path, {"qwen3_moe": "qwen3moe"}.get(kind, kind))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(2)
    if is_moe:
        experts, width = config["num_experts"], config["moe_intermediate_size"]
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])

    rng = np.random.default_rng(0)

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    def weight(name: str, *shape: int) -> None:
        data = q4_0(rng, shape, shape[-1] ** -0.5)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    weight("token_embd.weight", vocabulary, hidden)
    if not config["tie_word_embeddings"]:
        weight("output.weight", vocabulary, hidden)
    ones("output_norm.weight", hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"blk.{layer}."
        ones(at + "attn_norm.weight", hidden)
        ones(at + "ffn_norm.weight", hidden)
        if kind != "llama":
            ones(at + "attn_q_norm.weight", head)
            ones(at + "attn_k_norm.weight", head)
        weight(at + "attn_q.weight", heads * head, hidden)
        weight(at + "attn_k.weight", kv_heads * head, hidden)
        weight(at + "attn_v.weight", kv_heads * head, hidden)
        weight(at + "attn_output.weight", hidden, heads * head)
        if is_moe:
            router = rng.standard_normal((experts, hidden), np.float32) * hidden**-0.5
            writer.add_tensor(at + "ffn_gate_inp.weight", router)
            weight(at + "ffn_gate_exps.weight", experts, width, hidden)
            weight(at + "ffn_up_exps.weight", experts, width, hidden)
            weight(at + "ffn_down_exps.weight", experts, hidden, width)
        else:
            weight(at + "ffn_gate.weight", config["intermediate_size"], hidden)
            weight(at + "ffn_up.weight", config["intermediate_size"], hidden)
            weight(at + "ffn_down.weight", hidden, config["intermediate_size"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama(
    program: Path, model: Path, threads: int, work: argparse.Namespace
) -> dict[str, float]:
    """Tokens a second of one round: prompts by length, decode by depth."""
    command = [
        str(program), "-m", str(model), "-t", str(threads), "-r", "1", "-lm", "none",
        "--repack", "1", "-o", "json",
    ]  # fmt: skip
    rates = {}
    prompts = ",".join(map(str, work.prompts))
    depths = ",".join(map(str, work.depths))
    parts = []
    if prompts:
        parts.append(["-p", prompts, "-n", "0"])
    if depths:
        parts.append(["-p", "0", "-n", str(work.tokens), "-d", depths])
    for extra in parts:
        output = subprocess.run(
            command + extra,
            env=os.environ | {"GLIBC_TUNABLES": HUGE_PAGES},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout
        for row in json.loads(output):
            what = f"prompt {row['n_prompt']}" if row["n_prompt"] else f"decode at {row['n_depth']}"
            rates[what] = row["avg_ts"]
    return rates


def run_zmlx(folder: Path, threads: int, work: argparse.Namespace) -> dict[str, Any]:
    """The same of a patched model, in a process of its own."""
    settings = {
        "folder": str(folder),
        "prompts": work.prompts,
        "depths": work.depths,
        "tokens": work.tokens,
        "activations": work.activations,
    }
    output = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(settings)],
        env=os.environ | {"GLIBC_TUNABLES": HUGE_PAGES, "ZMLX_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    return json.loads(output)


def worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One round of a patched model: rates as `run_llama` gives them, and what the plan moves.

    With decode at depth 0, also the share that its bytes a second are of what reading alone
    gives, measured before and after it.
    """
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.models.cache import make_prompt_cache

    from zmlx import _ext, doctor
    from zmlx.patch import patch

    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.load(settings["folder"])[:2]
    patch(model, activations=settings["activations"])
    vocabulary = model.args.vocab_size
    rates = {}
    reads = []  # bytes a second

    def read() -> None:
        reads.append(_ext.read_bandwidth(doctor.READ_BYTES, doctor.READ_PASSES))

    def fill(cache: list[Any], count: int) -> None:
        tokens = mx.random.randint(0, vocabulary, (1, count))
        mx.eval(tokens)
        model(tokens, cache=cache)
        mx.eval([c.state for c in cache])

    for count in settings["prompts"]:
        fill(make_prompt_cache(model), count)  # plans this length
        start = time.perf_counter()
        fill(make_prompt_cache(model), count)
        rates[f"prompt {count}"] = count / (time.perf_counter() - start)
    for depth in settings["depths"]:
        cache = make_prompt_cache(model)
        for start in range(0, depth, 2048):
            fill(cache, min(2048, depth - start))
        token = mx.array([[1]])
        if depth == 0:
            read()
        for timed in (False, True):
            count = settings["tokens"] if timed else 8
            start = time.perf_counter()
            for _ in range(count):
                following = mx.argmax(model(token, cache=cache)[:, -1:, :], axis=-1)
                mx.async_eval(following)
                mx.eval(token)
                token = following
            mx.eval(token)
            if timed:
                rates[f"decode at {depth}"] = count / (time.perf_counter() - start)
        if depth == 0:
            read()
    moved = model.zmlx.bytes_per_token
    return {
        "rates": rates,
        "bytes_per_token": moved,
        "share_of_read": moved * rates["decode at 0"] / statistics.mean(reads) if reads else None,
        "patch_seconds": model.zmlx.seconds,
        "stock_calls": dict(model.zmlx.stock_calls),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes and every value."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def main() -> None:
    """Alternates the two sides and prints the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help="a preset")
    parser.add_argument("--layers", type=int, help="cut the preset to this many layers")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument("--depths", type=int, nargs="*", default=[0, 512, 4096])
    parser.add_argument("--tokens", type=int, default=64, help="tokens a decode run")
    parser.add_argument("--activations", choices=["exact", "int8"], default="exact")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work-folder", type=Path, default=Path("build/llama"))
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--append", action="store_true", help="add to the rounds in that file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(json.loads(options.worker))))
        return

    settings = {"layers": options.layers} if options.layers else {}
    folder = presets.write(options.model, **settings)
    if not shutil.which("cmake"):
        raise SystemExit("cpu_vs_llama.py needs cmake and ninja: pip install cmake ninja")
    program = build_llama(options.work_folder)
    gguf_file = options.work_folder / f"{Path(folder).name}.gguf"
    if not gguf_file.exists():
        write_gguf(gguf_file, json.loads((Path(folder) / "config.json").read_text()))

    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    result: dict[str, Any] = {
        "commands": [command],
        "machine": machine.machine(),
        "versions": machine.versions() | {"llama.cpp": PACKAGE},
        "commit": machine.commit(),
        "model": options.model,
        "layers": options.layers,
        "activations": options.activations,
        "unit": "tokens a second",
        "threads": {},
    }
    if options.append and options.json and options.json.exists():
        before = json.loads(options.json.read_text())
        for name, otherwise in (("model", None), ("layers", None), ("activations", "exact")):
            value = before.get(name, otherwise)
            if value != result[name]:
                raise SystemExit(f"{options.json} has another {name}: {value}.")
        result["commands"] = before["commands"]
        if command not in before["commands"]:
            result["commands"] = [*before["commands"], command]
        result["threads"] = before["threads"]
    for threads in options.threads:
        kept = result["threads"].get(str(threads), {"rates": {}})
        sides: dict[str, dict[str, list[float]]] = {"zmlx": {}, "llama.cpp": {}}
        for what, row in kept["rates"].items():
            for side in sides:
                sides[side][what] = row[side]["values"]
        shares = kept.get("share_of_read", {}).get("values", [])
        for _ in range(options.rounds):
            own = run_zmlx(Path(folder), threads, options)
            peer = run_llama(program, gguf_file, threads, options)
            shares += [own["share_of_read"]] if own["share_of_read"] else []
            for side, rates in (("zmlx", own["rates"]), ("llama.cpp", peer)):
                for what, rate in rates.items():
                    sides[side].setdefault(what, []).append(rate)
        rows = {}
        for what, values in sides["zmlx"].items():
            mine, theirs = spread(values), spread(sides["llama.cpp"][what])
            ratio = mine["median"] / theirs["median"]
            rows[what] = {"zmlx": mine, "llama.cpp": theirs, "ratio": ratio}
            print(
                f"{threads} threads  {what:15} zmlx {mine['median']:8.1f}  "
                f"llama.cpp {theirs['median']:8.1f}  ratio {ratio:.2f}",
                flush=True,
            )
        result["threads"][str(threads)] = {
            "bytes_per_token": own["bytes_per_token"],
            "patch_seconds": own["patch_seconds"],
            "rates": rows,
        }
        if shares:
            share = result["threads"][str(threads)]["share_of_read"] = spread(shares)
            print(f"{threads} threads  decode at 0 reads at {share['median']:.0%} of reading alone")
        if options.json:
            write_json(options.json, result)


if __name__ == "__main__":
    main()
