"""A model patched on a CUDA GPU: skipped where there is none."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import batch_generate
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from test_patch import TOLERANCE, distance, greedy, steps, to_float32, tokens_of

import zmlx
from zmlx import _ext, ops
from zmlx.patch import explain, is_patched, patch, unpatch

pytestmark = pytest.mark.skipif(bool(_ext.why_no_cuda()), reason=_ext.why_no_cuda() or "CUDA")

MODELS = ("tiny-moe", "tiny-qwen3")


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(mx.cpu)


def patched(model: Any) -> Any:
    patch(model)
    assert model.zmlx.patched, model.zmlx.reasons
    assert model.zmlx.device.startswith("cuda")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_as_close_to_float32_as_bfloat16_allows(load: Any, name: str) -> None:
    model, _ = load(name)
    tokens = tokens_of(60)
    chunks = [33, 1, 1, 9, 1, 1, 1, 1, 2, 5, 5]
    reference = steps(to_float32(model), tokens, chunks)
    assert distance(steps(patched(model), tokens, chunks), reference) < TOLERANCE["bfloat16"]
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("name", MODELS)
def test_decode_is_planned_and_repeats_itself(load: Any, name: str) -> None:
    model, _ = load(name)
    patched(model)
    assert "not planned" not in explain(model)
    prompt = tokens_of(21)
    assert greedy(model, prompt, 30) == greedy(model, prompt, 30)
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("name", MODELS)
def test_states_are_written_in_place_and_grow(load: Any, name: str) -> None:
    model, _ = load(name)
    tokens = tokens_of(270)
    chunks = [250] + [1] * 20
    reference = steps(to_float32(model), tokens, chunks)
    # Among so many tokens one may be near a tie of two experts, for stock as well.
    bound = max(TOLERANCE["bfloat16"], distance(steps(model, tokens, chunks), reference))
    patched(model)
    before = _ext.run_counts()
    assert distance(steps(model, tokens, chunks), reference) <= bound
    after = _ext.run_counts()
    states = 2 * len(model.layers)
    # The first buffers, grown ones, and the last layer's, which the prompt may still read.
    assert after["copied"] - before["copied"] <= 2 * states + 2
    assert after["in_place"] - before["in_place"] >= 18 * states


def test_a_trimmed_cache_and_a_copied_one_go_on_by_themselves(load: Any) -> None:
    model, _ = load("tiny-moe")
    patched(model)
    prompt = tokens_of(21)
    cache = make_prompt_cache(model)
    first = greedy(model, prompt, 8, cache)
    copied = copy.deepcopy(cache)
    trim_prompt_cache(cache, 8)
    trim_prompt_cache(copied, 8)
    nexts = mx.array([[first[0]]])
    a, b = model(nexts, cache=cache), model(nexts, cache=copied)
    assert mx.array_equal(a, b).item()
    assert mx.argmax(a[0, -1]).item() == first[1]


def test_a_snapshot_that_shares_buffers_is_not_overwritten(load: Any) -> None:
    model, _ = load("tiny-moe")
    patched(model)
    cache = make_prompt_cache(model)
    mx.eval(model(tokens_of(21), cache=cache))
    kept = cache[0].keys
    before = mx.array(kept)
    mx.eval(before)
    mx.eval(model(mx.array([[5]]), cache=cache))
    assert mx.array_equal(kept, before).item()


def test_the_cpu_reads_logits_while_decoding_goes_on(load: Any) -> None:
    model, _ = load("tiny-moe")
    patched(model)
    prompt = tokens_of(21)
    expected = greedy(model, prompt, 12)
    cache = make_prompt_cache(model)
    logits, tokens = model(prompt, cache=cache), []
    for _ in range(12):
        on_cpu = mx.argmax(logits[:, -1, :], axis=-1, stream=mx.cpu)
        tokens.append(on_cpu.item())
        logits = model(on_cpu[:, None], cache=cache)
    assert tokens == expected


def test_weights_that_the_cpu_has_read_are_found_again(load: Any) -> None:
    model, _ = load("tiny-moe")
    patched(model)
    prompt = tokens_of(21)
    expected = greedy(model, prompt, 8)
    for weight in (model.model.norm.weight, model.model.layers[0].input_layernorm.weight):
        mx.eval(mx.sum(weight, stream=mx.cpu))
    assert greedy(model, prompt, 8) == expected


def test_batches_give_as_many_tokens_as_one_by_one(load: Any) -> None:
    model, tokenizer = load("tiny-moe")
    patched(model)
    prompts = [tokens_of(n, seed=n)[0].tolist() for n in (5, 9, 3)]
    result = batch_generate(model, tokenizer, prompts, max_tokens=6, return_token_ids=True)
    assert [len(tokens) for tokens in result.token_ids] == [6, 6, 6]
    assert not model.zmlx.stock_calls


def test_two_streams_give_the_same_tokens(load: Any) -> None:
    model, _ = load("tiny-moe")
    patched(model)
    prompt = tokens_of(21)
    mx.eval(prompt)
    expected = greedy(model, prompt, 12)
    found: list[list[int]] = []

    def decode() -> None:
        mx.set_default_device(mx.gpu)
        with mx.stream(mx.new_thread_local_stream(mx.gpu)):
            found.append(greedy(model, prompt, 12))

    for _ in range(2):
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
    assert found == [expected, expected]


def test_unpatch_gives_the_model_back(load: Any) -> None:
    model, _ = load("tiny-moe")
    prompt = tokens_of(21)
    expected = greedy(model, prompt, 8)
    patched(model)
    greedy(model, prompt, 8)
    unpatch(model)
    assert not is_patched(model)
    assert greedy(model, prompt, 8) == expected


def test_an_op_alone_runs_among_mlxs_own() -> None:
    x = mx.random.normal((3, 128)).astype(mx.bfloat16)
    weight = mx.random.normal((128,)).astype(mx.bfloat16)
    (out,) = _ext.apply("rms_norm", [mx.exp(x), weight], {"eps": 1e-6})
    expected = mx.fast.rms_norm(mx.exp(x).astype(mx.float32), weight.astype(mx.float32), 1e-6)
    assert distance((out * 2).astype(mx.float32), 2 * expected) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_views_give_what_packed_arrays_do(dtype: mx.Dtype) -> None:
    x = mx.random.normal((7, 33, 130), key=mx.random.key(2)).astype(dtype)
    flat = x.reshape(-1)
    views = [
        x.transpose(1, 0, 2)[::2],
        x[..., 3:99],
        x.swapaxes(0, 2),
        flat[1 : 1 + 60 * 65].reshape(60, 65),  # begins in the middle of a word
        flat[8 : 8 + 20 * 1024].reshape(20, 1024),
    ]
    row = zmlx.elementwise("x * rsqrt(row_mean(x * x) + 0.01) + x", inputs=("x",))
    for view in views:
        whole = mx.array(np.array(view.astype(mx.float32))).astype(dtype)
        weight = mx.random.normal((view.shape[-1],), key=mx.random.key(3)).astype(dtype)
        functions = [
            ops.softmax,
            ops.sum,
            ops.cumsum,
            lambda x: ops.swiglu(x, x),
            lambda x, weight=weight: ops.rms_norm(x, weight),
            lambda x: ops.topk(x, k=3)[0],
            lambda x: mx.concatenate([row(x), ops.gelu(x)], -1),
        ]
        for function in functions:
            assert mx.array_equal(function(view), function(whole)).item()


@pytest.mark.parametrize("rows", [1, 3, 400])
def test_running_sums_of_long_rows(rows: int) -> None:
    x = mx.random.normal((rows, 5003), key=mx.random.key(4))
    want = np.cumsum(np.array(x, dtype=np.float64), -1)
    assert np.allclose(np.array(ops.cumsum(x)), want, 1e-4, 1e-3)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int32], ids=str)
def test_expressions_run_as_kernels_on_strided_and_broadcast_arrays(dtype: mx.Dtype) -> None:
    f = zmlx.elementwise("a * sigmoid(b) + c", inputs=("a", "b", "c"))
    a = mx.random.normal((37, 5, 65), key=mx.random.key(0)) * 3
    arrays = [a.astype(dtype), a.astype(dtype).transpose(2, 1, 0).reshape(65, 185).T[:, None]]
    x, y = arrays[0][::-1, :, 1:], arrays[1][:37, :, :64]
    with mx.stream(mx.cpu):
        wide = [v.astype(mx.float32) for v in (x, y)]
        want = wide[0] * mx.sigmoid(wide[1]) + 0.5
    got = f(x, y, 0.5)
    tolerance = {mx.float16: 3e-3, mx.bfloat16: 2.4e-2}.get(dtype, 2e-5)
    assert mx.allclose(got.astype(mx.float32), want, tolerance, tolerance).item()
    assert f(x[:0], y[:1], 0.5).shape == (0, 5, 64)


def test_gradients_of_expressions_run_on_the_gpu() -> None:
    f = zmlx.elementwise("a * exp(b)", inputs=("a", "b"))
    a, b = mx.random.normal((33, 70)), mx.random.normal((70,))
    got = mx.grad(lambda *v: f(*v).sum(), argnums=(0, 1))(a, b)
    want = mx.grad(lambda a, b: (a * mx.exp(b)).sum(), argnums=(0, 1))(a, b)
    for g, w in zip(got, want, strict=True):
        assert mx.allclose(g, w, 2e-5, 2e-5).item()


def test_reductions_and_traced_functions_run_on_the_gpu() -> None:
    x = mx.random.normal((33, 70))

    @zmlx.jit
    def gated(x: mx.array, y: mx.array) -> mx.array:
        return mx.where(x > 0, x * y, mx.tanh(y))

    y = mx.random.normal((70,))
    assert mx.allclose(gated(x, y), mx.where(x > 0, x * y, mx.tanh(y)), 2e-5, 2e-5).item()
    got = zmlx.map_reduce("x * x", "mean", 0)(x)
    assert mx.allclose(got, (x * x).mean(0), 2e-5, 2e-5).item()
