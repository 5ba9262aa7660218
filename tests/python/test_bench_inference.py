# tests/python/test_bench_inference.py: the inference benchmark: tiny models, stand-in patches.
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import jsonschema
import mlx.core as mx
import pytest

import zmlx.presets
from zmlx.bench import capsule, report
from zmlx.bench.inference import Benchmark, Identity, Options, load_model, make_prompt

SCHEMA = json.loads(capsule.SCHEMA.read_text())
SHORT = {"runs": 2, "max_tokens": 6, "prompt_tokens": 5}


class Patch(Identity):
    """Changes nothing but notes its calls, and reports as `zmlx.patch` does."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def patch(self, model):
        self.calls.append("patch")
        model.zmlx = SimpleNamespace(
            patched=True,
            patterns={"rms_norm": 9},
            int8={},
            exact={},
            nodes_before=100,
            nodes_after=20,
            launches=12,
            bytes_per_token=1_000_000,
            reasons=["an op without a kernel: Sort"],
            seconds=0.1,
            stock_calls=Counter({"embeddings as input": 2}),
        )
        return model

    def unpatch(self, model):
        self.calls.append("unpatch")
        del model.zmlx
        return model


class WrongPatch(Patch):
    """A patch that gets the model wrong: its logits come out reversed."""

    def patch(self, model):
        model.norm_weight = model.model.norm.weight
        model.model.norm.weight = -model.norm_weight
        return super().patch(model)

    def unpatch(self, model):
        model.model.norm.weight = model.norm_weight
        return super().unpatch(model)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def check(result: dict) -> dict:
    jsonschema.validate(result, SCHEMA, jsonschema.Draft202012Validator)
    return result


def run(patcher=None, out=None, **options) -> dict:
    options = {"model": "tiny-moe", **SHORT, **options}
    return check(Benchmark(Options(**options), out, patcher=patcher or Patch()).run())


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_result_is_complete_and_on_disk(tmp_path):
    out = tmp_path / "result.json"
    result = run(out=out)
    assert json.loads(out.read_text()) == result
    assert result["complete"]
    assert result["stopped"] is None
    assert result["versions"]["mlx"] == mx.__version__
    assert result["model"]["name"] == "tiny-moe"
    assert result["patch"][0]["report"]["patterns"] == {"rms_norm": 9}


def test_runs_alternate_and_do_the_work_asked_for():
    result = run()
    assert [run["variant"] for run in result["runs"]] == ["stock", "patched", "patched", "stock"]
    for entry in result["runs"]:
        assert entry["prompt_tokens"] == 5
        assert entry["generated_tokens"] == len(entry["tokens"]) == 6
        assert 0 < entry["time_to_first_token_s"] < entry["total_s"]


def test_rates_follow_from_the_times():
    entry = run()["runs"][0]
    first, total = entry["time_to_first_token_s"], entry["total_s"]
    assert entry["prompt_tps"] == pytest.approx(5 / first)
    assert entry["generation_tps"] == pytest.approx(5 / (total - first))


def test_the_model_is_patched_for_its_own_runs_only_and_left_unpatched():
    patcher = Patch()
    run(patcher)
    assert patcher.calls == ["patch", "unpatch"]
    patcher = Patch()
    run(patcher, runs=3)
    assert patcher.calls == ["patch", "unpatch", "patch", "unpatch"]


def test_equal_tokens_are_reported_equal():
    fidelity = run()["fidelity"]
    assert fidelity == {
        "compared": 6,
        "equal": True,
        "first_difference": None,
        "reproducible": {"stock": True, "patched": True},
    }


def test_a_wrong_patch_is_seen_at_its_first_token_with_the_margin():
    fidelity = run(WrongPatch())["fidelity"]
    assert not fidelity["equal"]
    assert fidelity["first_difference"]["position"] == 0
    assert fidelity["first_difference"]["margin"] > 0
    # Stock's runs stay stock's: nothing of the wrong patch is left in them.
    assert fidelity["reproducible"] == {"stock": True, "patched": True}


def test_a_shortened_stock_is_compared_on_its_own_prompt():
    result = run(stock_runs=1, stock_max_tokens=3, stock_prompt_tokens=2)
    assert [run["variant"] for run in result["runs"]] == ["stock", "patched", "patched"]
    stock, patched = result["runs"][:2]
    assert (stock["prompt_tokens"], stock["generated_tokens"]) == (2, 3)
    assert (patched["prompt_tokens"], patched["generated_tokens"]) == (5, 6)
    assert result["check"]["prompt_tokens"] == 2
    assert result["fidelity"]["equal"]
    assert result["fidelity"]["compared"] == 3


def test_different_work_gives_rates_but_no_ratio_of_times_or_memory():
    summary = run(stock_max_tokens=3, stock_prompt_tokens=2)["summary"]
    assert summary["generation_tps"]["gain"] > 0
    assert summary["total_s"]["gain"] is None
    assert summary["time_to_first_token_s"]["gain"] is None
    assert summary["peak_memory_bytes"]["gain"] is None
    summary = run(stock_max_tokens=3)["summary"]
    assert summary["time_to_first_token_s"]["gain"] > 0
    assert summary["total_s"]["gain"] is None


def test_stock_never_generates_more_than_asked():
    assert run(stock_max_tokens=100)["settings"]["stock"]["max_tokens"] == 6


def test_a_null_run_has_no_patch_report():
    result = run(Identity(), null_run=True)
    assert result["settings"]["null_run"]
    assert result["patch"][0]["report"] is None
    assert "null run" in report.markdown(result)


@pytest.mark.parametrize("stop", ["stock: run 1", "patched: warm-up", "patched: run 2"])
def test_an_interrupted_run_leaves_a_valid_incomplete_file_and_an_unpatched_model(tmp_path, stop):
    def interrupt(doing, done, total):
        if doing == stop:
            raise KeyboardInterrupt

    out = tmp_path / "result.json"
    patcher = Patch()
    options = Options("tiny-moe", **SHORT)
    with pytest.raises(KeyboardInterrupt):
        Benchmark(options, out, interrupt, patcher).run()
    result = check(json.loads(out.read_text()))
    assert not result["complete"]
    assert result["stopped"] == "interrupted"
    assert (
        len(result["runs"]) == {"stock: run 1": 0, "patched: warm-up": 1, "patched: run 2": 2}[stop]
    )
    assert patcher.calls in ([], ["patch", "unpatch"])
    assert "incomplete: interrupted" in report.markdown(result)


def test_a_failing_patch_is_named_in_the_incomplete_file(tmp_path):
    class Broken(Patch):
        def patch(self, model):
            raise RuntimeError("no plan")

    out = tmp_path / "result.json"
    with pytest.raises(RuntimeError, match="no plan"):
        Benchmark(Options("tiny-moe", **SHORT), out, patcher=Broken()).run()
    result = check(json.loads(out.read_text()))
    assert result["stopped"] == "RuntimeError: no plan"
    assert len(result["runs"]) == 1


def test_ctrl_c_ends_the_command_with_130_and_a_valid_incomplete_file(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "zmlx", "bench", "inference", "--model", "tiny-moe"]
    command += ["--null-run", "--runs", "2000", "--prompt-tokens", "4", "--max-tokens", "20"]
    process = subprocess.Popen(
        [*command, "--json", str(out)],
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, as these tests may be, ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(600):
            if out.exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "zmlx: error: interrupted." in errors
    assert "marked incomplete" in errors
    result = check(json.loads(out.read_text()))
    assert result["stopped"] == "interrupted"
    assert result["command"][:3] == ["zmlx", "bench", "inference"]


def test_a_prompt_depends_on_the_seed_only():
    _, tokenizer, config, _ = load_model(Options("tiny-moe"))
    prompts = [make_prompt(Options("tiny-moe", seed=seed), tokenizer, config) for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]
    assert len(prompts[0]) == 306
    longer = make_prompt(Options("tiny-moe", prompt_tokens=400), tokenizer, config)
    assert longer[:306] == prompts[0]


def test_a_text_can_be_the_prompt():
    result = run(prompt_text="Hello, world")
    assert result["settings"]["prompt"] == "text"
    assert result["runs"][0]["prompt_tokens"] > 1


def test_no_token_ends_a_run_early():
    _, tokenizer, *_ = load_model(Options("tiny-moe"))
    ends = set(tokenizer.eos_token_ids)
    result = run(WrongPatch(), max_tokens=64)
    assert {entry["generated_tokens"] for entry in result["runs"]} == {64}
    assert ends == tokenizer.eos_token_ids


def test_a_model_of_the_users_own_can_change_its_dtype(tmp_path):
    folder = zmlx.presets.write("tiny-qwen3", tmp_path / "mine")
    result = run(model=str(folder), dtype="float32")
    assert result["model"]["name"] == "mine"
    assert result["model"]["preset"] is None
    assert result["model"]["dtypes"] == ["float32"]


def test_the_report_begins_with_the_tokens_and_ends_with_the_table():
    text = report.markdown(run())
    assert "- tokens: all 6 equal" in text
    assert "- patterns: rms_norm 9" in text
    assert "- left to MLX: an op without a kernel: Sort" in text
    assert "- calls that stock answered: 2 (embeddings as input)" in text
    assert text.index("tokens: all") < text.index("| | stock mlx_lm | patched | gain |")
    assert text.splitlines()[-1].startswith("| memory, process, GB |")


def test_a_model_that_could_not_be_patched_is_called_so():
    class Unsupported(Patch):
        def patch(self, model):
            super().patch(model)
            model.zmlx.patched = False
            model.zmlx.reasons = ["cache type ArraysCache"]
            return model

    text = report.markdown(run(Unsupported()))
    assert "- patch: left the model as it was" in text
    assert "- left to MLX: cache type ArraysCache" in text
    assert "patterns:" not in text


def test_overlapping_runs_are_no_difference():
    result = run()
    for side in ("stock", "patched"):
        result["summary"]["total_s"][side] = {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 2}
    result["summary"]["total_s"] |= {"gain": 1.0, "differs": False}
    assert "| total, s | 2.00 (1.00-3.00) | 2.00 (1.00-3.00) | no difference |" in (
        report.markdown(result)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "--runs must be 1 or more but got 0"),
        ({"max_tokens": 1}, "--max-tokens must be 2 or more but got 1"),
        ({"prompt_tokens": 0}, "--prompt-tokens must be 1 or more but got 0"),
        ({"stock_runs": 0}, "--stock-runs must be 1 or more but got 0"),
        ({"stock_max_tokens": 1}, "--stock-max-tokens must be 2 or more but got 1"),
        ({"stock_prompt_tokens": 0}, "--stock-prompt-tokens must be 1 or more but got 0"),
        ({"threads": 0}, "--threads must be 1 or more but got 0"),
        ({"dtype": "int8"}, "--dtype must be one of bfloat16, float16, float32 but got 'int8'"),
        ({"prompt_text": ""}, "--prompt-text must not be empty"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Benchmark(Options(model="tiny-moe", **options))


def test_an_unknown_model_is_neither_a_folder_nor_a_preset():
    with pytest.raises(
        ValueError, match="'tiny-mo' is neither a folder nor a preset; presets: demo"
    ):
        Benchmark(Options("tiny-mo"), patcher=Patch()).run()


def test_a_model_of_the_users_own_is_not_cut(tmp_path):
    folder = zmlx.presets.write("tiny-qwen3", tmp_path / "mine")
    with pytest.raises(ValueError, match="--layers cuts presets only"):
        Benchmark(Options(str(folder), layers=1), patcher=Patch()).run()
