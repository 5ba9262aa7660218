# tests/python/test_smart.py: what helps is kept, what is slow or wrong is not, by a clock of ours.
from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

import zmlx
from zmlx import _ext, smart
from zmlx.bench import capsule, report
from zmlx.bench import search as searching
from zmlx.patch import is_patched, patch
from zmlx.smart import Patterns, decision_key, decision_path, smart_patch


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Clock:
    """Stands still but for what the calls of a model cost, with noise if asked for."""

    def __init__(self, noise=0.0, seed=0):
        self.now = 0.0
        self.noise = noise
        self.random = np.random.default_rng(seed)

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds * float(np.exp(self.random.normal(0, self.noise)))


class ToyCache:
    """As little of a cache as a measurement needs."""

    def __init__(self):
        self.offset = 0
        self.state = mx.zeros(1)

    def trim(self, count):
        self.offset -= count


class Toy(nn.Module):
    """A table of logits; a call costs a tenth of a second, or what the switch says."""

    def __init__(self, clock):
        super().__init__()
        mx.random.seed(3)
        self.table = mx.random.normal((32, 32)).astype(mx.bfloat16)
        self.layers = [nn.Identity()]
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "on", {"decode": None, "prompt": None})
        object.__setattr__(self, "switch", None)

    def make_cache(self):
        return [ToyCache()]

    def __call__(self, tokens, cache=None):
        phase = "decode" if tokens.shape[1] == 1 else "prompt"
        for entry in cache or []:
            entry.offset += tokens.shape[1]
        choice = self.on[phase]
        self.clock.spend(0.1 * (1 if choice is None else self.switch.cost(phase, choice)))
        logits = self.table[tokens]
        return logits + (1 if choice and self.switch.wrong & choice else 0)


class Parts:
    """Patterns by name, each a factor of the time when it is there, for decode and prompts."""

    def __init__(self, model, factors, wrong=(), needed=(), prompt=None):
        object.__setattr__(model, "switch", self)
        self.model = model
        self.factors = {"decode": factors, "prompt": prompt or factors}
        self.wrong = set(wrong)
        self.needed = set(needed)

    def cost(self, phase, choice):
        return float(np.prod([self.factors[phase][name] for name in choice]))

    def parts(self, tokens):
        return sorted(self.factors["decode"])

    def obstacle(self, choice, tokens):
        return "it is needed" if choice is not None and self.needed - choice else None

    def apply(self, decode, prompt):
        self.model.on.update(decode=decode, prompt=prompt)

    def revert(self):
        self.apply(None, None)


def search(factors, noise=0.0, seed=0, budget_s=1e4, refresh=True, **options):
    clock = Clock(noise, seed)
    model = Toy(clock)
    parts = Parts(model, factors, **options)
    arguments = {"refresh": refresh, "progress": False, "switch": parts, "clock": clock}
    smart_patch(model, [1, 2, 3, 4, 5, 6], budget_s=budget_s, **arguments)
    return model


def why(model, phase="decode"):
    """What the report says of each candidate of a phase."""
    candidates = model.zmlx.decision["phases"][phase]["candidates"]
    return {candidate["name"]: candidate["why"] for candidate in candidates}


def test_what_helps_is_kept_and_what_does_not_is_reverted():
    model = search({"good": 0.5, "fine": 0.9, "idle": 1.0})
    assert model.on == {"decode": {"good", "fine"}, "prompt": {"good", "fine"}}
    found = why(model)
    assert found["without good"].startswith("slower, time +100.0%")
    assert found["without good"].endswith("good stays")
    assert found["without idle"].startswith("no difference")
    assert found["without idle"].endswith("idle is reverted")


def test_a_pattern_made_slow_on_purpose_is_reverted():
    model = search({"good": 0.5, "slow": 3.0})
    assert model.on == {"decode": {"good"}, "prompt": {"good"}}
    assert why(model)["all patterns"].startswith("slower, time +50.0%")
    assert why(model)["without slow"].startswith("faster, time -66.7%")


def test_a_pattern_made_wrong_on_purpose_is_reverted_though_it_is_fast():
    model = search({"good": 0.5, "wrong": 0.1}, wrong=["wrong"])
    assert model.on == {"decode": {"good"}, "prompt": {"good"}}
    assert why(model)["all patterns"].startswith("wrong results: logits lie ")
    timed = model.zmlx.decision["phases"]["decode"]["candidates"]
    assert all("wrong" not in entry["patterns"] for entry in timed if entry["trial"])


def test_two_wrong_patterns_are_reverted_too():
    model = search({"good": 0.5, "bad": 0.1, "worse": 0.1}, wrong=["bad", "worse"])
    assert model.on["decode"] == {"good"}


@pytest.mark.parametrize(
    "options",
    [
        {"factors": {"slow": 1.5, "also": 1.0}},
        {"factors": {"wrong": 0.1}, "wrong": ["wrong"]},
        {"factors": {"slow": 2.0, "wrong": 0.1}, "wrong": ["wrong"]},
    ],
)
def test_stock_stays_when_nothing_helps(options):
    model = search(**options)
    assert model.on == {"decode": None, "prompt": None}
    assert not model.zmlx.patched
    assert model.zmlx.reasons[0].startswith("prompt: stock was kept: ")


def test_decode_and_prompts_get_what_helps_each():
    model = search({"a": 0.5, "b": 2.0}, prompt={"a": 2.0, "b": 0.5})
    assert model.on == {"decode": {"a"}, "prompt": {"b"}}


def test_a_pattern_without_which_nothing_can_be_planned_stays():
    model = search({"base": 1.5, "good": 0.2}, needed=["base"])
    assert model.on["decode"] == {"base", "good"}
    assert why(model)["without base"] == "cannot be planned: it is needed: base stays"


def test_a_noisy_machine_does_not_end_slower_than_stock():
    factors = {"idle": 1.0, "slow": 1.1, "good": 0.8, "none": 1.0}
    for seed in range(12):
        model = search(factors, noise=0.05, seed=seed)
        for phase, choice in model.on.items():
            assert choice is None or model.switch.cost(phase, choice) < 1


def test_of_equal_sides_stock_is_left_in_at_most_the_stated_share():
    left = sum(search({"idle": 1.0}, 0.05, seed).on["decode"] is not None for seed in range(60))
    assert left <= 3 + 3 * 1.7


def test_no_more_is_begun_when_the_budget_is_spent():
    model = search({"good": 0.5, "fine": 0.9}, budget_s=1.0)
    assert model.on == {"decode": None, "prompt": None}
    assert "the budget" in model.zmlx.reasons[0]
    assert model.clock.now < 1.5
    enough = search({"good": 0.5, **{f"p{i}": 0.99 for i in range(30)}}, budget_s=60.0)
    assert "good" in enough.on["prompt"]
    assert "not measured, the budget is spent: p9 stays" in why(enough, "prompt").values()
    assert enough.clock.now < 1.2 * 60


def test_stocks_share_is_cut_to_the_budget():
    settings = search({"good": 0.01}, budget_s=8.0).zmlx.decision["settings"]
    assert settings["prompt_tokens"] == 6
    assert settings["stock_prompt_tokens"] == 4
    assert settings["stock_steps"] == 4


def test_a_decision_is_measured_once_and_then_applied():
    clock = Clock()
    model = Toy(clock)
    parts = Parts(model, {"good": 0.5})
    arguments = {"budget_s": 1e4, "progress": False, "switch": parts, "clock": clock}
    smart_patch(model, [1, 2, 3], **arguments)
    first, spent = model.zmlx.decision, clock.now
    parts.revert()
    smart_patch(model, [1, 2, 3], **arguments)
    assert clock.now == spent
    assert model.on == {"decode": {"good"}, "prompt": {"good"}}
    assert model.zmlx.decision == first
    smart_patch(model, [1, 2, 3], refresh=True, **arguments)
    assert clock.now > spent


def test_the_decision_on_disk_is_a_capsule_and_a_broken_one_is_measured_anew(tmp_path):
    model = search({"good": 0.5})
    (file,) = (tmp_path / "zmlx" / "decisions").iterdir()
    document = capsule.read(file)
    assert document == model.zmlx.decision
    assert file == decision_path(document["settings"]["key"])
    assert document["phases"]["decode"]["noise"] == pytest.approx(0)
    assert "- decode: good; noise 0.0%" in report.markdown(document)
    assert "| decode | all patterns | -50.0% | yes | faster" in report.markdown(document)
    file.write_text("{")
    assert search({"good": 0.5}, refresh=False).clock.now > 0
    file.write_text(json.dumps({**document, "complete": False, "stopped": "interrupted"}))
    assert search({"good": 0.5}, refresh=False).clock.now > 0
    assert capsule.read(file)["complete"]


def test_a_decision_belongs_to_machine_geometry_versions_and_settings(monkeypatch):
    model = Toy(Clock())
    settings = {"threshold": 0.01}
    key = decision_key(model, settings)
    assert decision_key(Toy(Clock()), settings) == key
    assert decision_key(model, {"threshold": 0.02}) != key
    with monkeypatch.context() as patched:
        patched.setattr(smart.machine, "usable_cores", lambda: 77)
        assert decision_key(model, settings) != key
    with monkeypatch.context() as patched:
        patched.setattr(smart, "_extension_stamp", lambda: "another build")
        assert decision_key(model, settings) != key
    model.table = model.table.astype(mx.float32)
    assert decision_key(model, settings) != key


def test_an_interrupted_search_leaves_its_runs_and_the_model_as_it_was(tmp_path, monkeypatch):
    clock = Clock()
    model = Toy(clock)
    parts = Parts(model, {"good": 0.5, "fine": 0.5})
    trials = iter(range(3))

    def stop(self, before, after):
        if next(trials, None) is None:
            raise KeyboardInterrupt
        return searching.Search.trial(self.search, self.name, before, after, noise=0.01)

    monkeypatch.setattr(searching.Phase, "_trial", lambda self, name, a, b: stop(self, a, b))
    with pytest.raises(KeyboardInterrupt):
        smart_patch(model, [1, 2], budget_s=1e4, progress=False, switch=parts, clock=clock)
    assert model.on == {"decode": None, "prompt": None}
    (file,) = (tmp_path / "zmlx" / "decisions").iterdir()
    document = capsule.read(file)
    assert document["stopped"] == "interrupted"
    assert document["phases"]["prompt"]["candidates"][0]["trial"]["verdict"] == "faster"


class Marred(Patterns):
    """zmlx's own patterns, one made slow on purpose and one made wrong."""

    def __init__(self, model, clock, slow, wrong):
        super().__init__(model)
        self.clock, self.slow, self.wrong = clock, slow, wrong

    def runner(self, choice):
        runner = super().runner(choice)
        return MarredRunner(self, runner, self.slow in choice, self.wrong in choice)


class MarredRunner:
    def __init__(self, switch, runner, slow, wrong):
        self.switch, self.runner, self.slow, self.wrong = switch, runner, slow, wrong

    def __call__(self, tokens, cache):
        self.switch.clock.spend(0.3 if self.slow else 0.1)
        logits = self.runner(tokens, cache)
        return logits * 1.5 if self.wrong and logits is not None else logits

    def __getattr__(self, name):
        return getattr(self.runner, name)


@pytest.fixture
def slow_stock(load, monkeypatch):
    """`slow_stock(name, dtype)`: a model and a clock by which each of stock's calls takes 1 s."""

    def make(name, dtype):
        model, _ = load(name, dtype=dtype)
        clock = Clock()
        stock = type(model).__call__

        def costly(self, *args, **kwargs):
            clock.spend(1.0)
            return stock(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "__call__", costly)
        return model, clock

    return make


def test_real_patterns_end_without_the_slow_and_the_wrong_one(slow_stock):
    model, clock = slow_stock("tiny-qwen3", "bfloat16")
    switch = Marred(model, clock, "norm_linear", "merge_linears")
    sample = list(range(2, 10))
    smart_patch(model, sample, budget_s=1e5, progress=False, switch=switch, clock=clock)
    chosen = {name: phase["chosen"] for name, phase in model.zmlx.decision["phases"].items()}
    for names in chosen.values():
        assert "linear" in names
        assert not {"norm_linear", "merge_linears"} & set(names)
    assert is_patched(model)
    assert set(model.zmlx.patterns) == set(chosen["decode"])


def test_the_model_given_back_is_patched_and_computes_the_same(slow_stock, capsys):
    model, clock = slow_stock("tiny-moe", "float32")
    tokens = mx.array([[5, 6, 7, 8]])
    expected = np.array(model(tokens))
    switch = Marred(model, clock, "", "")
    arguments = {"budget_s": 1e5, "switch": switch, "clock": clock, "verbose": True}
    assert zmlx.smart_patch(model, [5, 6, 7, 8], **arguments) is model
    assert "| decode | all patterns | -90.0% | yes |" in capsys.readouterr().err
    assert is_patched(model)
    assert model.zmlx.patterns
    cache = make_prompt_cache(model)
    parts = [model(tokens[:, :3], cache=cache), model(tokens[:, 3:], cache=cache)]
    found = np.concatenate([np.array(part) for part in parts], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not model.zmlx.stock_calls


def test_a_phase_left_to_stock_is_left_and_counted(load):
    model, _ = load("tiny-moe")
    switch = Patterns(model)
    switch.apply(frozenset(_ext.pattern_names()), None)
    assert is_patched(model)
    cache = make_prompt_cache(model)
    model(mx.array([[5, 6]]), cache=cache)
    model(mx.array([[7]]), cache=cache)
    assert dict(model.zmlx.stock_calls) == {"prompts: the model itself was chosen": 1}
    switch.apply(None, None)
    assert not is_patched(model)


def test_a_model_that_cannot_be_captured_stays_with_the_reason(load, monkeypatch):
    model, _ = load("tiny-qwen3")
    monkeypatch.setattr(
        type(model), "make_cache", lambda self: [RotatingKVCache(64) for _ in self.layers],
        raising=False,
    )  # fmt: skip
    smart_patch(model, [1, 2, 3], budget_s=20, progress=False)
    assert not is_patched(model)
    assert "cannot be planned: cache type RotatingKVCache" in model.zmlx.reasons[0]


def test_a_patched_model_is_measured_from_stock(load):
    model, _ = load("tiny-qwen3")
    patch(model)
    smart_patch(model, [1, 2], budget_s=1e-9, progress=False)
    assert not is_patched(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0}, r"\[smart_patch\] threshold must be from 0 to 1 but got 1.0"),
        ({"budget_s": 0}, r"\[smart_patch\] budget_s must be positive but got 0"),
        ({"sample": [1]}, r"\[smart_patch\] sample must have two tokens or more"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        smart_patch(Toy(Clock()), **arguments)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be an mlx.nn.Module but is str"):
        smart_patch("model")
