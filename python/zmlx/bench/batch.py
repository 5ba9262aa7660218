# zmlx/bench/batch.py: throughput of mlx_lm.batch_generate by batch size, stock against patched.
"""Batched generation: `python -m zmlx.bench.batch --model small --batch 1,2,4,8`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from zmlx.bench import capsule, machine
from zmlx.bench.inference import ACTIVATIONS, Options, load_model
from zmlx.bench.statistics import alternate
from zmlx.patch import patch, unpatch

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Row:
    """Best run of each side at one batch size; rates count the tokens of all sequences."""

    batch: int
    prompt_tokens: int
    max_tokens: int
    stock_prompt_tps: float
    patched_prompt_tps: float
    stock_generation_tps: float
    patched_generation_tps: float
    same_tokens: float
    """Share of the generated tokens before the first difference of the two sides."""
    stock_calls: int
    """Calls of the patched model that went to the model itself; 0 is what it should be."""


def prompts_of(batch: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random prompts of `tokens`, 3/4 of it, `tokens`, ... so that sequences are padded."""
    random = np.random.default_rng(seed)
    lengths = [tokens if i % 2 == 0 else max(1, tokens * 3 // 4) for i in range(batch)]
    return [random.integers(0, vocabulary, n).tolist() for n in lengths]


def same_share(a: list[list[int]], b: list[list[int]]) -> float:
    """Share of the tokens before the first difference of each sequence."""
    same = total = 0
    for x, y in zip(a, b, strict=True):
        differ = [i for i, (s, t) in enumerate(zip(x, y, strict=False)) if s != t]
        same += differ[0] if differ else min(len(x), len(y))
        total += max(len(x), len(y))
    return same / total if total else 1.0


def measure(
    model: Any,
    vocabulary: int,
    batches: list[int],
    prompt_tokens: int = 64,
    max_tokens: int = 32,
    runs: int = 2,
    seed: int = 0,
    activations: str = "exact",
    told: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """One row a batch size; runs of both sides alternate, each side begins with a short one.

    The model is left unpatched.
    """
    from mlx_lm.generate import BatchGenerator

    def run(prompts: list[list[int]], count: int) -> tuple[list[list[int]], float, float]:
        # Without stop tokens every sequence gets its full length.
        generator = BatchGenerator(
            model,
            max_tokens=count,
            completion_batch_size=len(prompts),
            prefill_batch_size=len(prompts),
        )
        tokens: dict[int, list[int]] = {uid: [] for uid in generator.insert(prompts)}
        with generator.stats() as stats:
            while responses := generator.next_generated():
                for response in responses:
                    tokens[response.uid].append(response.token)
        generator.close()
        return list(tokens.values()), stats.prompt_tps, stats.generation_tps

    for size in batches:
        prompts = prompts_of(size, prompt_tokens, vocabulary, seed)
        best: dict[str, tuple[float, float]] = {}
        tokens: dict[str, list[list[int]]] = {}
        stock_calls = 0
        for side in alternate(runs, runs):
            told(f"batch of {size}: {side}")
            if side == "patched":
                patch(model, activations=activations)
            if side == "patched" or side not in best:  # a fresh patch has no plans yet
                run(prompts, WARM_UP_TOKENS)
            tokens[side], prompt, generation = run(prompts, max_tokens)
            before = best.get(side, (0.0, 0.0))
            best[side] = (max(before[0], prompt), max(before[1], generation))
            if side == "patched":
                stock_calls += model.zmlx.stock_calls.total()
                unpatch(model)
        yield Row(
            batch=size,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            stock_prompt_tps=best["stock"][0],
            patched_prompt_tps=best["patched"][0],
            stock_generation_tps=best["stock"][1],
            patched_generation_tps=best["patched"][1],
            same_tokens=same_share(tokens["stock"], tokens["patched"]),
            stock_calls=stock_calls,
        )


def numbers(text: str) -> list[int]:
    """ "1,2,4" as [1, 2, 4]; click.BadParameter for what is no list of sizes."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"must be numbers of 1 or more but got '{text}'.")
    return sizes


@click.command("batch")
@click.option("--model", required=True, help="A preset, a folder or a Hugging Face name.")
@click.option("--batch", "batches", default="1,2,4,8", show_default=True, help="Batch sizes.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--max-tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=2, show_default=True, help="Of each side.")
@click.option("--dtype", help="Of a preset's activations.")
@click.option("--bits", type=int, default=4, show_default=True, help="A preset's weights.")
@click.option("--layers", type=int, help="Cuts a preset to so many layers.")
@click.option("--activations", type=click.Choice(ACTIVATIONS), default="exact", show_default=True)
@click.option("--threads", type=int, help="For zmlx; by default every core it may use.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Result.")
def command(
    model: str,
    batches: str,
    prompt_tokens: int,
    max_tokens: int,
    runs: int,
    dtype: str | None,
    bits: int,
    layers: int | None,
    activations: str,
    threads: int | None,
    out: Path | None,
) -> None:
    """Throughput of batches through mlx_lm's BatchGenerator, stock against patched."""
    options = Options(model=model, dtype=dtype, bits=bits, layers=layers, threads=threads)
    options.check()
    options.apply_threads()
    sizes = numbers(batches)
    loaded, tokenizer, config, facts = load_model(options)
    vocabulary = config.get("vocab_size") or tokenizer.vocab_size
    settings = {
        "batches": sizes,
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "runs": runs,
        "activations": activations,
        "threads": machine.threads(),
    }
    document = capsule.envelope("batch", facts, settings) | {"rows": []}

    def save() -> None:
        if out:
            capsule.write(out, document)

    click.echo(
        "batch  prompt tok/s: stock  zmlx      generation tok/s: stock  zmlx      same tokens"
    )
    work = (loaded, vocabulary, sizes, prompt_tokens, max_tokens, runs)
    with capsule.recording(document, save):
        for row in measure(*work, activations=activations):
            document["rows"].append(asdict(row))
            save()
            prompt = row.patched_prompt_tps / row.stock_prompt_tps
            generation = row.patched_generation_tps / row.stock_generation_tps
            click.echo(
                f"{row.batch:5d} {row.stock_prompt_tps:20.1f} {row.patched_prompt_tps:7.1f} "
                f"({prompt:4.1f}x) {row.stock_generation_tps:18.1f} "
                f"{row.patched_generation_tps:7.1f} ({generation:4.1f}x) {row.same_tokens:8.0%}"
            )


if __name__ == "__main__":
    command()
