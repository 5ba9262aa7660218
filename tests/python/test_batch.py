"""Batches of padded sequences: `mlx_lm.batch_generate` and `mlx_lm.server` with a patched model."""

from __future__ import annotations

import copy
import http.client
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import TINY
from mlx_lm import server
from mlx_lm.generate import BatchGenerator, batch_generate
from mlx_lm.models.cache import BatchKVCache, KVCache, LRUPromptCache

from zmlx import _ext
from zmlx.patch import make_runner, patch

LENGTHS = (3, 17, 1, 40, 9)


def prompts_of(*lengths: int) -> list[list[int]]:
    mx.random.seed(sum(lengths))
    return [mx.random.randint(10, 500, (n,)).tolist() for n in lengths]


def batch(
    model: nn.Module, tokenizer: Any, prompts: list[list[int]], **kwargs: Any
) -> list[list[int]]:
    kwargs.setdefault("max_tokens", 24)
    return batch_generate(model, tokenizer, prompts, return_token_ids=True, **kwargs).token_ids


def caches_of(model: nn.Module, left_padding: list[int]) -> list[BatchKVCache]:
    return [BatchKVCache(left_padding) for _ in model.layers]


def distance(a: mx.array, reference: mx.array) -> float:
    return (mx.max(mx.abs(a - reference)) / mx.max(mx.abs(reference))).item()


@pytest.mark.parametrize("name", TINY)
def test_batches_give_the_tokens_of_stock_and_of_one_by_one(load: Any, name: str) -> None:
    model, tokenizer = load(name, dtype="float32")
    prompts = prompts_of(*LENGTHS)
    expected = batch(model, tokenizer, prompts)
    patch(model)
    assert batch(model, tokenizer, prompts) == expected
    assert [batch(model, tokenizer, [p])[0] for p in prompts] == expected
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_short_floats_run_in_batches(load: Any, name: str, dtype: str) -> None:
    model, tokenizer = load(name, dtype=dtype)
    patch(model)
    tokens = batch(model, tokenizer, prompts_of(*LENGTHS))
    assert [len(t) for t in tokens] == [24] * len(LENGTHS)
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("name", TINY)
def test_padded_steps_take_no_more_launches(load: Any, name: str) -> None:
    model, _ = load(name)
    runner = make_runner(model)
    assert runner.prepare(1, 1)
    launches = runner.launches
    for size, tokens in ((1, 1), (2, 1), (5, 1)):
        assert runner.prepare(size, tokens, padded=True), runner.reasons
        assert runner.launches == launches
    assert "causal_mask" not in runner.explain(3, 7, padded=True).split("== plan ==")[1]


def test_sequences_end_and_join_while_others_run(load: Any) -> None:
    model, tokenizer = load("tiny-moe", dtype="float32")
    prompts = prompts_of(5, 30, 2, 11, 70, 1, 8)
    settings = {
        "max_tokens": [3, 30, 9, 1, 21, 14, 2],
        "completion_batch_size": 3,
        "prefill_batch_size": 2,
    }
    expected = batch(model, tokenizer, prompts, **settings)
    patch(model)
    assert batch(model, tokenizer, prompts, **settings) == expected
    assert not model.zmlx.stock_calls


def test_a_longer_prompt_joins_a_running_batch(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    first, second = prompts_of(4, 300)

    def run() -> dict[int, list[int]]:
        generator = BatchGenerator(model, max_tokens=30)
        tokens: dict[int, list[int]] = {}
        generator.insert([first])
        for step in range(80):
            if step == 10:
                generator.insert([second])
            for response in generator.next_generated():
                tokens.setdefault(response.uid, []).append(response.token)
        generator.close()
        return tokens

    expected = run()
    patch(model)
    assert run() == expected
    assert [len(t) for t in expected.values()] == [30, 30]
    assert not model.zmlx.stock_calls


def test_long_prompts_are_read_in_pieces(load: Any) -> None:
    model, tokenizer = load("tiny-llama", dtype="float32")
    prompts = prompts_of(90, 7, 33)
    expected = batch(model, tokenizer, prompts)
    patch(model)
    assert batch(model, tokenizer, prompts, prefill_step_size=16) == expected
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-5), ("float16", 5e-3), ("bfloat16", 4e-2)]
)
def test_left_padded_prompts_give_the_logits_of_a_float32_run(
    load: Any, name: str, dtype: str, tolerance: float
) -> None:
    model, _ = load(name, dtype=dtype)
    reference = copy.deepcopy(model)
    reference.set_dtype(mx.float32)
    padding = [0, 5, 8]
    tokens = mx.array(prompts_of(9, 9, 9), mx.int32)
    following = mx.array(prompts_of(4, 4, 4), mx.int32)

    def run(model: nn.Module) -> list[mx.array]:
        cache = caches_of(model, padding)
        parts = [model(tokens, cache=cache)]
        parts += [model(following[:, t : t + 1], cache=cache) for t in range(4)]
        assert cache[0]._idx == 13
        assert all(c.offset.tolist() == [13, 8, 5] for c in cache)
        return parts

    expected = run(reference)
    patch(model)
    got = [a.astype(mx.float32) for a in run(model)]
    for b, left in enumerate(padding):
        assert distance(got[0][b, left:], expected[0][b, left:]) < tolerance
        for a, e in zip(got[1:], expected[1:], strict=True):
            assert distance(a[b], e[b]) < tolerance
    # What stands in the padding is nobody's business, but it is finite.
    assert mx.all(mx.isfinite(got[0])).item()
    assert not model.zmlx.stock_calls


def test_a_batch_writes_its_caches_in_place_and_its_offsets_are_no_chain(load: Any) -> None:
    model, _ = load("tiny-moe")
    patch(model)
    cache = caches_of(model, [0, 3])
    token = mx.argmax(model(mx.array(prompts_of(9, 9), mx.int32), cache=cache)[:, -1:], axis=-1)
    mx.eval(token)
    copied = _ext.run_counts()["copied"]
    for _ in range(2000):
        token = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
        mx.eval(token)
    graph = io.StringIO()
    mx.export_to_dot(graph, cache[1].offset)
    assert graph.getvalue().count("Add") <= 1
    assert cache[1].offset.tolist() == [2009, 2006]
    # Eight buffers grow; all other steps write in place.
    assert _ext.run_counts()["copied"] - copied <= 8 * 2 * len(cache)
    assert not model.zmlx.stock_calls


def test_prompt_caches_go_in_and_come_out(load: Any) -> None:
    model, tokenizer = load("tiny-moe", dtype="float32")
    prompts = prompts_of(12, 5)

    def run() -> list[list[int]]:
        first = batch_generate(
            model,
            tokenizer,
            prompts,
            max_tokens=6,
            return_prompt_caches=True,
            return_token_ids=True,
        )
        assert all(type(c) is KVCache for caches in first.caches for c in caches)
        more = batch(model, tokenizer, prompts_of(3, 8), prompt_caches=first.caches)
        return [*first.token_ids, *more]

    expected = run()
    patch(model)
    assert run() == expected
    assert not model.zmlx.stock_calls


def test_a_copied_or_trimmed_batch_goes_its_own_way(load: Any) -> None:
    model, _ = load("tiny-llama", dtype="float32")
    tokens = mx.array(prompts_of(6, 6), mx.int32)

    def run() -> list[mx.array]:
        cache = caches_of(model, [0, 2])
        model(tokens, cache=cache)
        other = copy.deepcopy(cache)
        for c in other:
            c.trim(2)
        return [
            model(tokens[:, :1], cache=cache),
            model(tokens[:, 1:4], cache=other),
            model(tokens[:, 2:3], cache=cache),
        ]

    expected = run()
    patch(model)
    for a, e in zip(run(), expected, strict=True):
        assert distance(a, e) < 2e-5
    assert not model.zmlx.stock_calls


def test_caches_that_do_not_belong_together_go_to_the_model(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    runner = make_runner(model)
    token = mx.array([[1], [2]], mx.int32)

    def reason(cache: list[Any]) -> str:
        assert runner(token, cache) is None
        return runner.reason

    assert reason([*caches_of(model, [0, 0])[:-1], KVCache()]) == "cache type KVCache"
    assert reason([KVCache(), *caches_of(model, [0, 0])[1:]]) == "cache type BatchKVCache"
    uneven = caches_of(model, [0, 0])
    uneven[1]._idx = 1
    assert reason(uneven) == "the caches' offsets differ"
    more = "a batch cache needs one int32 offset a sequence"
    assert reason(caches_of(model, [0, 0, 0])) == more
    assert reason(caches_of(model, [0, 0])[:1] * 2) == "one cache object serves several layers"


def test_a_batch_of_another_size_than_the_cache_is_refused(load: Any) -> None:
    model, _ = load("tiny-moe", dtype="float32")
    patch(model)
    cache = caches_of(model, [0, 1])
    model(mx.array(prompts_of(4, 4), mx.int32), cache=cache)
    for c in cache:
        c.offset = mx.array([4, 3, 2])
    with pytest.raises(ValueError, match="the cache holds 2 sequences but the tokens are of 3"):
        model(mx.array(prompts_of(1, 1, 1), mx.int32), cache=cache)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[nn.Module, Any], int]]:
    """`serve(model, tokenizer)` starts mlx_lm's server with that model and gives its port."""
    running: list[tuple[Any, Any]] = []

    def start(model: nn.Module, tokenizer: Any) -> int:
        monkeypatch.setattr(server, "load", lambda *_, **__: (model, tokenizer, {}))
        monkeypatch.setattr(server, "load_processor", lambda *_: None)
        arguments: list[Any] = []
        monkeypatch.setattr(
            server, "run", lambda _host, _port, provider: arguments.append(provider)
        )
        monkeypatch.setattr(sys, "argv", ["server", "--model", "tiny", "--host", "127.0.0.1"])
        server.main()
        generator = server.ResponseGenerator(arguments[0], LRUPromptCache(4))

        def handler(*args: Any, **kwargs: Any) -> server.APIHandler:
            return server.APIHandler(generator, *args, system_fingerprint="test", **kwargs)

        httpd = server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        running.append((httpd, generator))
        return int(httpd.server_address[1])

    yield start
    for httpd, generator in running:
        httpd.shutdown()
        httpd.server_close()
        generator.stop_and_join()


def completion(port: int, prompt: str, **settings: Any) -> str:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 20, **settings}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 200, answer
    return answer["choices"][0]["text"]


def test_the_server_answers_with_the_text_of_stock(load: Any, serve: Any) -> None:
    model, tokenizer = load("tiny-qwen3", dtype="float32")
    prompts = ["A", "the quick brown fox", "x" * 70]
    port = serve(model, tokenizer)
    expected = [completion(port, p) for p in prompts]
    assert all(expected)
    patch(model)
    port = serve(model, tokenizer)
    assert [completion(port, p) for p in prompts] == expected
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda p=p: got.update({p: completion(port, p)})) for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[p] for p in prompts] == expected
    assert not model.zmlx.stock_calls
