"""A model patched with 8-bit activations: what is rounded, how close it stays, what is refused."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import TINY
from mlx_lm.models.cache import make_prompt_cache

import zmlx
from zmlx.bench import compare, report
from zmlx.bench.inference import Benchmark, Options
from zmlx.patch import explain, is_patched, patch, unpatch
from zmlx.validate import Validation, Work


def logits(model: nn.Module, tokens: mx.array) -> mx.array:
    """Of a prompt and then one token at a time."""
    cache = make_prompt_cache(model)
    parts = [model(tokens[:, :20], cache=cache)]
    parts += [model(tokens[:, i : i + 1], cache=cache) for i in range(20, tokens.shape[1])]
    return mx.concatenate(parts, axis=1).astype(mx.float32)


def tokens_of(count: int) -> mx.array:
    mx.random.seed(1)
    return mx.random.randint(0, 512, (1, count)).astype(mx.int32)


def distance(a: mx.array, b: mx.array) -> float:
    """Root mean square of the difference, relative to b's."""
    return (mx.sqrt(mx.mean((a - b) ** 2)) / mx.sqrt(mx.mean(b**2))).item()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", TINY)
def test_logits_are_near_the_exact_ones_but_not_the_same(load: Any, name: str, bits: int) -> None:
    model, _ = load(name, dtype="float32", bits=bits)
    tokens = tokens_of(24)
    exact = logits(patch(model), tokens)
    rounded = logits(patch(model, activations="int8"), tokens)
    assert 1e-4 < distance(rounded, exact) < 0.05
    assert model.zmlx.stock_calls.total() == 0


def test_prompts_and_single_tokens_are_rounded_alike(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32", bits=4)
    patch(model, activations="int8")
    tokens = tokens_of(24)
    whole = model(tokens, cache=make_prompt_cache(model))
    # A value between two integers may go either way: sums differ in their last bits.
    assert distance(logits(model, tokens), whole) < 0.01


def test_plan_and_report_say_what_is_rounded(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="bfloat16", bits=4)
    made = patch(model, activations="int8").zmlx
    layers = 2
    assert made.int8 == {"linear": 2 * layers + 1, "moe_block": layers}
    assert made.exact == {"moe_block's router (affine)": layers}
    assert str(made).endswith(
        "\nint8 activations: linear 5, moe_block 2; exact: moe_block's router (affine) 2"
    )
    plan = explain(model).split("== plan ==\n")[1]
    assert plan.count("activations=int8") == 7
    unpatch(model)
    assert explain(model, activations="int8").split("== plan ==\n")[1] == plan
    assert "activations" not in explain(model)
    assert patch(model).zmlx.int8 == {}
    assert "int8" not in str(model.zmlx)


def test_weights_that_are_not_quantised_stay_exact(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32", bits=None)
    tokens = tokens_of(24)
    exact = logits(patch(model), tokens)
    rounded = logits(patch(model, activations="int8"), tokens)
    assert mx.array_equal(exact, rounded)
    assert model.zmlx.int8 == {}
    assert set(model.zmlx.exact) == {"linear (none)", "mlp (none)"}


def test_compile_rounds_too() -> None:
    mx.random.seed(0)
    x, w = mx.random.normal((5, 128)), mx.random.normal((32, 128))
    codes = mx.quantize(w, group_size=64, bits=4)

    def product(x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, *codes, transpose=True, group_size=64, bits=4)

    exact = zmlx.compile(product)(x)
    rounded = zmlx.compile(product, activations="int8")(x)
    groups = x.reshape(5, 2, 64)
    largest = mx.abs(groups).max(-1, keepdims=True)
    by_hand = (mx.round(groups * (127 / largest)) * (largest / 127)).reshape(5, 128)
    assert distance(rounded, product(by_hand)) < 1e-5
    assert 1e-4 < distance(rounded, exact) < 0.05


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda model, value: patch(model, activations=value), "patch"),
        (lambda model, value: explain(model, activations=value), "explain"),
        (lambda model, value: zmlx.smart_patch(model, activations=value), "smart_patch"),
        (lambda model, value: zmlx.compile(model, activations=value), "compile"),
    ],
)
def test_what_cannot_be_is_refused(
    load: Any, monkeypatch: pytest.MonkeyPatch, call: Any, where: str
) -> None:
    model, _ = load("tiny-qwen3", dtype="float32", bits=4)
    wanted = f"[{where}] activations must be 'exact' or 'int8' but got 'int4'."
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        call(model, "int4")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    wanted = f"[{where}] activations='int8' is for the CPU, but MLX's default device is a GPU."
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        call(model, "int8")
    assert not is_patched(model)


def test_the_last_patch_decides(load: Any) -> None:
    model, _ = load("tiny-llama", dtype="float32", bits=4)
    tokens = tokens_of(24)
    exact = logits(patch(model), tokens)
    patch(model, activations="int8")
    assert mx.array_equal(logits(patch(model), tokens), exact)


def test_a_benchmark_and_a_validation_patch_with_them_and_say_so() -> None:
    options = Options("tiny-moe", runs=1, max_tokens=4, prompt_tokens=8, activations="int8")
    result = Benchmark(options).run()
    assert result["settings"]["activations"] == "int8"
    assert result["patch"][0]["report"]["int8"] == {"linear": 5, "moe_block": 2}
    assert "patched with int8 activations" in report.markdown(result)
    work = Work(prompt_tokens=(4,), steps=2, text_tokens=0, runs=1)
    result = Validation(options, work).run()
    assert result["settings"]["activations"] == "int8"
    assert result["patch"]["exact"] == {"moe_block's router (affine)": 2}
    assert "patched with int8 activations 1 x" in report.markdown(result)
    with pytest.raises(ValueError, match=r"^--activations must be exact or int8 but got 'int4'\.$"):
        Options("tiny-moe", activations="int4").check()


def test_results_from_before_there_was_a_choice_count_as_exact() -> None:
    part = {"complete": True, "machine": {}, "model": {}, "environment": {}}
    old, exact, int8 = (
        {**part, "settings": settings}
        for settings in ({}, {"activations": "exact"}, {"activations": "int8"})
    )
    assert compare.differences(old, exact) == []
    assert compare.differences(old, int8) == ["settings activations: exact and int8"]
