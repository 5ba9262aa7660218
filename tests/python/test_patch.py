"""A patched model computes what the model does, whatever happens to caches, and can be undone."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from conftest import TINY
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.sample_utils import make_sampler

from zmlx import _ext
from zmlx.patch import explain, is_patched, patch, unpatch

DTYPES = ("float32", "float16", "bfloat16")
# Largest difference of logits from a float32 run, relative to the largest logit.
TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}


def tokens_of(count: int, seed: int = 0, batch: int = 1) -> mx.array:
    mx.random.seed(seed)
    return mx.random.randint(0, 512, (batch, count)).astype(mx.int32)


def greedy(
    model: nn.Module, prompt: mx.array, count: int, cache: list[Any] | None = None
) -> list[int]:
    cache = cache or make_prompt_cache(model)
    logits = model(prompt, cache=cache)
    tokens = []
    for _ in range(count):
        token = mx.argmax(logits[:, -1, :], axis=-1)
        tokens.append(token.item())
        logits = model(token[:, None], cache=cache)
    return tokens


def steps(model: nn.Module, tokens: mx.array, chunks: list[int]) -> mx.array:
    """Logits of all tokens, fed in chunks of the given lengths."""
    cache = make_prompt_cache(model)
    parts, start = [], 0
    for size in chunks:
        parts.append(model(tokens[:, start : start + size], cache=cache))
        start += size
    return mx.concatenate(parts, axis=1).astype(mx.float32)


def to_float32(model: nn.Module) -> nn.Module:
    """A copy of the model with the same weights and float32 activations."""
    other = copy.deepcopy(model)
    other.set_dtype(mx.float32)
    return other


def distance(a: mx.array, reference: mx.array) -> float:
    return (mx.max(mx.abs(a - reference)) / mx.max(mx.abs(reference))).item()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8, None])
def test_logits_are_as_close_to_float32_as_the_dtype_allows(
    load: Any, name: str, dtype: str, bits: int | None
) -> None:
    model, _ = load(name, dtype=dtype, bits=bits)
    tokens = tokens_of(50)
    chunks = [33, 1, 1, 9, 1, 1, 1, 1, 2]
    reference = steps(to_float32(model), tokens, chunks)
    patch(model)
    assert model.zmlx.patched, model.zmlx.reasons
    assert distance(steps(model, tokens, chunks), reference) < TOLERANCE[dtype]
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("name", TINY)
def test_float32_models_give_the_tokens_of_stock(load: Any, name: str) -> None:
    model, _ = load(name, dtype="float32")
    prompt = tokens_of(21)
    expected = greedy(model, prompt, 40)
    assert greedy(patch(model), prompt, 40) == expected


@pytest.mark.parametrize("name", TINY)
def test_no_node_of_mlx_is_left_in_the_plan(load: Any, name: str) -> None:
    model, _ = load(name)
    patch(model)
    text = explain(model)
    plan = text[text.index("== plan ==") :]
    assert "not planned" not in plan
    assert model.zmlx.nodes_after < model.zmlx.nodes_before / 5
    layers = len(model.layers)
    attention = model.zmlx.patterns
    assert sum(attention.values()) > 3 * layers


def test_the_report_names_patterns_nodes_and_bytes(load: Any) -> None:
    model, _ = load("tiny-moe")
    report = patch(model).zmlx
    assert report.patched
    assert not report.reasons
    assert report.nodes_before > report.nodes_after > report.launches > 0
    assert report.bytes_per_token > 0
    assert report.seconds > 0
    assert "launches" in str(report)


def test_the_cache_grows_past_its_first_buffer(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    prompt = tokens_of(250)
    expected = greedy(model, prompt, 20)
    patch(model)
    cache = make_prompt_cache(model)
    assert greedy(model, prompt, 20, cache) == expected
    assert cache[0].offset == 270
    assert cache[0].keys.shape[2] == 512


def test_prompts_of_any_split_give_the_same_logits(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    tokens = tokens_of(70)
    patch(model)
    whole = steps(model, tokens, [70])
    for chunks in ([69, 1], [1, 69], [64, 6], [35, 35], [8] * 8 + [6]):
        assert distance(steps(model, tokens, chunks), whole) < 1e-5


def test_more_prompt_lengths_than_plans_are_kept(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    tokens = tokens_of(24)
    expected = steps(model, tokens, [24])
    patch(model)
    for length in [*range(2, 24), 2, 23]:
        assert distance(steps(model, tokens, [length]), expected[:, :length]) < 2e-5
    assert not model.zmlx.stock_calls


def test_without_a_cache_the_logits_are_the_same(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    tokens = tokens_of(13)
    expected = model(tokens)
    assert distance(patch(model)(tokens), expected) < 2e-5
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("name", TINY)
def test_a_batch_gives_each_sequence_its_own_logits(load: Any, name: str) -> None:
    model, _ = load(name, dtype="float32")
    tokens = tokens_of(17, batch=3)
    expected = steps(model, tokens, [15, 1, 1])
    patch(model)
    assert distance(steps(model, tokens, [15, 1, 1]), expected) < 2e-5
    assert not model.zmlx.stock_calls


def test_a_step_writes_its_cache_in_place(load: Any) -> None:
    model, _ = load("tiny-moe")
    patch(model)
    cache = make_prompt_cache(model)
    token = mx.argmax(model(tokens_of(9), cache=cache)[:, -1:, :], axis=-1)
    mx.eval(token)
    copied = _ext.run_counts()["copied"]
    for _ in range(50):
        following = mx.argmax(model(token, cache=cache)[:, -1:, :], axis=-1)
        mx.async_eval(following)
        token.item()
        token = following
    mx.eval(token)
    assert _ext.run_counts()["copied"] == copied


def test_a_deep_copied_cache_goes_its_own_way(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    model(tokens_of(9), cache=cache)
    mx.eval([c.state for c in cache])
    other = copy.deepcopy(cache)
    expected = greedy(model, tokens_of(3, seed=1), 10, copy.deepcopy(cache))
    greedy(model, tokens_of(4, seed=2), 10, cache)
    assert greedy(model, tokens_of(3, seed=1), 10, other) == expected


def test_two_generations_from_one_prompt_cache_do_not_disturb_each_other(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    prompt = tokens_of(12)
    expected = [
        greedy(model, mx.concatenate([prompt, tokens_of(2, s)], axis=1), 12) for s in (1, 2)
    ]
    patch(model)
    shared = make_prompt_cache(model)
    model(prompt, cache=shared)
    caches = [copy.deepcopy(shared) for _ in range(2)]
    logits = [model(tokens_of(2, s), cache=c) for s, c in zip((1, 2), caches, strict=True)]
    got: list[list[int]] = [[], []]
    for _ in range(12):
        for i in range(2):
            token = mx.argmax(logits[i][:, -1, :], axis=-1)
            got[i].append(token.item())
            logits[i] = model(token[:, None], cache=caches[i])
    assert got == expected


def test_a_trimmed_cache_continues_from_where_it_was_cut(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    prompt = tokens_of(14)
    expected = greedy(model, prompt, 15)
    patch(model)
    cache = make_prompt_cache(model)
    model(mx.concatenate([prompt[:, :10], tokens_of(7, seed=3)], axis=1), cache=cache)
    before = [c.keys for c in cache]
    trim_prompt_cache(cache, 7)
    assert greedy(model, prompt[:, 10:], 15, cache) == expected
    assert before[0].shape == cache[0].keys.shape


def test_a_slice_of_the_cache_keeps_its_contents(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    model(tokens_of(9), cache=cache)
    view = cache[0].keys[..., 4:12, :]
    mx.eval(view)
    kept = mx.array(view.tolist())
    greedy(model, tokens_of(3, seed=1), 5, cache)
    assert mx.array_equal(view, kept)


def test_a_prompt_cache_survives_saving(load: Any, tmp_path: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    model(tokens_of(9), cache=cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    expected = greedy(model, tokens_of(2, seed=4), 10, cache)
    loaded = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    assert greedy(model, tokens_of(2, seed=4), 10, loaded) == expected


def test_lazy_prompt_chunks_are_exact_when_their_logits_are_read_late(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    tokens = tokens_of(24)
    expected = steps(model, tokens, [8, 8, 8])
    patch(model)
    cache = make_prompt_cache(model)
    parts = []
    for i in range(3):
        parts.append(model(tokens[:, 8 * i : 8 * i + 8], cache=cache))
        mx.eval([c.state for c in cache])
    assert distance(mx.concatenate(parts[::-1][::-1], axis=1), expected) < 2e-5


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RotatingKVCache(max_size=64), "cache type RotatingKVCache"),
        (lambda: QuantizedKVCache(group_size=32, bits=8), "cache type QuantizedKVCache"),
    ],
)
def test_another_cache_type_runs_the_model_itself_and_is_reported(
    load: Any, make: Any, reason: str
) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    tokens = tokens_of(8)
    expected = model(tokens, cache=[make() for _ in model.layers])
    patch(model)
    got = model(tokens, cache=[make() for _ in model.layers])
    assert mx.array_equal(got, expected)
    assert model.zmlx.stock_calls == {reason: 1}


def test_a_cache_of_another_dtype_runs_the_model_itself(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="bfloat16")
    patch(model)
    cache = make_prompt_cache(model)
    for c in cache:
        c.keys = mx.zeros((1, 2, 256, 64), mx.float32)
        c.values = mx.zeros((1, 2, 256, 64), mx.float32)
    model(tokens_of(3), cache=cache)
    assert model.zmlx.stock_calls == {"a cache does not have the model's dtype": 1}
    assert cache[0].offset == 3


def test_a_cache_for_another_batch_is_not_silently_used(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    mx.eval(model(tokens_of(3), cache=cache))
    model(tokens_of(2), cache=cache)
    with pytest.raises(ValueError, match="the cache holds 1 sequences but the tokens are of 2"):
        model(tokens_of(2, batch=2), cache=cache)
    assert cache[0].offset == 5


def test_caches_out_of_step_run_the_model_itself(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    model(tokens_of(6), cache=cache)
    cache[1].trim(1)
    model(tokens_of(1), cache=cache)
    assert model.zmlx.stock_calls == {"the caches' offsets differ": 1}
    assert [c.offset for c in cache] == [7, 6]


def test_an_offset_beyond_the_buffer_is_an_error_and_leaves_the_cache(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    model(tokens_of(6), cache=cache)
    for c in cache:
        c.offset = 300
    with pytest.raises(ValueError, match="a cache holds 256 tokens but its offset is 300"):
        model(tokens_of(1), cache=cache)
    assert cache[0].offset == 300


@pytest.mark.parametrize(
    "tokens", [mx.zeros((1, 3), mx.float32), mx.zeros((3,), mx.int32), mx.zeros((1, 2), mx.int64)]
)
def test_other_token_arrays_do_what_the_model_does(load: Any, tokens: mx.array) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")

    def outcome() -> Any:
        try:
            return model(tokens, cache=make_prompt_cache(model)).tolist()
        except ValueError as error:
            return str(error)

    expected = outcome()
    patch(model)
    assert outcome() == expected
    assert sum(model.zmlx.stock_calls.values()) == 1


def test_a_closed_generator_leaves_a_usable_cache(load: Any) -> None:
    model, tokenizer = load("tiny-moe", dtype="float32")
    patch(model)
    prompt = tokens_of(6)[0].tolist()

    def run(close_after: int) -> tuple[list[int], list[Any]]:
        cache = make_prompt_cache(model)
        stream = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=20, prompt_cache=cache)
        tokens = []
        for response in stream:
            tokens.append(response.token)
            if len(tokens) == close_after:
                stream.close()
                break
        return tokens, cache

    tokens, cache = run(5)
    whole = greedy(model, mx.array([prompt]), 12)
    assert tokens == whole[:5]
    kept = cache[0].offset - len(prompt)
    assert 5 <= kept <= 7
    for c in cache:
        c.trim(c.offset - len(prompt) - 4)
    assert greedy(model, mx.array([[whole[4]]]), 5, cache) == whole[5:10]


def test_an_exception_while_a_step_is_traced_leaves_the_cache(load: Any, monkeypatch: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    patch(model)
    cache = make_prompt_cache(model)
    tokens = tokens_of(7)
    mx.eval(model(tokens[:, :6], cache=cache))
    attention = type(model.layers[0].self_attn)

    def broken(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(attention, "__call__", broken)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            model(tokens_of(5), cache=cache)
    assert cache[0].offset == 6
    expected = steps(model, tokens, [6, 1])[:, -1]
    assert distance(model(tokens[:, 6:], cache=cache)[:, -1], expected) < 1e-5
    before = model.zmlx.stock_calls.total()
    model(tokens_of(5), cache=cache)
    assert model.zmlx.stock_calls.total() == before


def test_two_threads_generate_with_one_model(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    patch(model)
    prompts = [tokens_of(5 + i, seed=i) for i in range(2)]
    expected = [greedy(model, prompt, 30) for prompt in prompts]
    got: list[Any] = [None, None]

    def work(i: int) -> None:
        with mx.stream(mx.new_thread_local_stream(mx.cpu)):
            got[i] = [greedy(model, prompts[i], 30) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[tokens] * 5 for tokens in expected]


def test_generate_gives_the_text_of_stock(load: Any) -> None:
    model, tokenizer = load("tiny-moe", dtype="float32")
    sampler = make_sampler(temp=0.0)
    prompt = tokens_of(30)[0].tolist()
    expected = mlx_lm.generate(model, tokenizer, prompt, max_tokens=25, sampler=sampler)
    patch(model)
    assert mlx_lm.generate(model, tokenizer, prompt, max_tokens=25, sampler=sampler) == expected


def test_sampling_with_a_seed_gives_the_text_of_stock(load: Any) -> None:
    model, tokenizer = load("tiny-qwen3", dtype="float32")
    prompt = tokens_of(30)[0].tolist()

    def run() -> str:
        mx.random.seed(11)
        sampler = make_sampler(temp=0.8, top_p=0.9)
        return mlx_lm.generate(model, tokenizer, prompt, max_tokens=25, sampler=sampler)

    expected = run()
    patch(model)
    assert run() == expected


def test_unpatch_restores_the_object_exactly(load: Any) -> None:
    model, _ = load("tiny-moe")
    cls, attributes, items = type(model), dict(vars(model)), dict(model)
    patch(model)
    assert isinstance(model, cls)
    assert type(model).__name__ == cls.__name__
    assert unpatch(model) is model
    assert type(model) is cls
    assert vars(model) == attributes
    assert all(model[key] is value for key, value in items.items())
    assert len(model) == len(items)
    unpatch(model)
    assert not is_patched(model)


def test_patching_twice_takes_the_last_options(load: Any) -> None:
    model, _ = load("tiny-moe")
    cls = type(model)
    first = patch(model).zmlx.patterns
    assert "swiglu" in _ext.pattern_names()
    second = patch(model, exclude=[next(iter(first))]).zmlx.patterns
    assert first != second
    unpatch(model)
    assert type(model) is cls


def test_saved_weights_are_the_same_bytes(load: Any, tmp_path: Any) -> None:
    model, _ = load("tiny-moe")
    model.save_weights(str(tmp_path / "before.safetensors"))
    names = [name for name, _ in tree_flatten(model.parameters())]
    patch(model)
    model(tokens_of(3))
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    model.save_weights(str(tmp_path / "after.safetensors"))
    before = (tmp_path / "before.safetensors").read_bytes()
    assert (tmp_path / "after.safetensors").read_bytes() == before


def test_a_copied_or_pickled_model_is_the_model_unpatched(load: Any) -> None:
    model, _ = load("tiny-moe")
    cls = type(model)
    patch(model)
    other = copy.deepcopy(model)
    assert type(other) is cls
    assert not hasattr(other, "zmlx")
    assert is_patched(model)
    assert model.zmlx.patched
    patched = model.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    unpatch(model)
    stock = model.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    assert patched[:3] == stock[:3]
    assert list(patched[4]) == list(stock[4])


def test_changed_weights_are_used_at_once(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    tokens = tokens_of(6)
    layer = model.layers[0]
    original = layer.input_layernorm.weight
    patch(model)
    before = model(tokens)
    try:
        layer.input_layernorm.weight = original * 2
        changed = model(tokens)
        assert distance(changed, before) > 1e-3
        unpatch(model)
        assert distance(changed, model(tokens)) < 2e-5
    finally:
        layer.input_layernorm.weight = original


def test_a_replaced_layer_is_used_at_once(load: Any) -> None:
    model, _ = load("tiny-llama", dtype="float32")
    tokens = tokens_of(6)
    patch(model)
    before = model(tokens)
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]
    try:
        swapped = model(tokens)
        assert distance(swapped, before) > 1e-3
        unpatch(model)
        assert distance(swapped, model(tokens)) < 2e-5
    finally:
        layers[0], layers[1] = layers[1], layers[0]


def test_training_runs_the_model_itself(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32", bits=None)
    tokens = tokens_of(5)

    def loss(model: nn.Module, tokens: mx.array) -> mx.array:
        return mx.mean(mx.square(model(tokens)))

    _, expected = nn.value_and_grad(model, loss)(model, tokens)
    patch(model)
    _, got = nn.value_and_grad(model, loss)(model, tokens)
    assert model.zmlx.stock_calls.total() == 1
    for (_, a), (_, b) in zip(tree_flatten(got), tree_flatten(expected), strict=True):
        assert mx.allclose(a, b)


def test_exact_rounds_where_the_unfused_graph_rounds(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="bfloat16", bits=None)
    tokens = tokens_of(40)
    reference = steps(to_float32(model), tokens, [40])
    exact = steps(patch(model, exact=True), tokens, [40])
    free = steps(patch(model), tokens, [40])
    assert distance(exact, reference) < TOLERANCE["bfloat16"]
    assert not mx.array_equal(exact, free)


def test_a_model_with_another_cache_is_left_with_the_reason(load: Any, monkeypatch: Any) -> None:
    model, _ = load("tiny-qwen3")
    monkeypatch.setattr(
        type(model),
        "make_cache",
        lambda self: [RotatingKVCache(64) for _ in self.layers],
        raising=False,
    )
    patch(model)
    assert not is_patched(model)
    assert not model.zmlx.patched
    assert model.zmlx.reasons == ["cache type RotatingKVCache"]
    assert "left as it was" in str(model.zmlx)
    unpatch(model)
    assert not hasattr(model, "zmlx")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"\[patch\] model must be an mlx.nn.Module but is str"):
        patch("model")  # type: ignore[arg-type]


def test_an_unknown_pattern_is_refused_and_the_known_are_named(load: Any) -> None:
    model, _ = load("tiny-moe")
    with pytest.raises(ValueError, match=r"\[patch\] there is no pattern 'swishglue'; known: "):
        patch(model, patterns=["swishglue"])
    assert not is_patched(model)


def test_a_patched_model_is_freed_with_its_last_reference(preset_folder: Any) -> None:
    import gc
    import weakref

    model, _ = mlx_lm.load(preset_folder("tiny-moe"))[:2]
    patch(model)
    model(tokens_of(3), cache=[KVCache() for _ in model.layers])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
