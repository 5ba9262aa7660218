# tests/python/test_closeness.py: distances of logits from a float32 run, and `zmlx validate`.
from __future__ import annotations

import math
import runpy
import sys
from collections import Counter
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import zmlx.validate
from zmlx import _ext, cli
from zmlx.bench import capsule, closeness, report
from zmlx.bench.closeness import (
    Parting,
    at_least_as_close,
    distance,
    parting,
    perplexity,
    run_steps,
)
from zmlx.bench.inference import Identity, Options, load_model
from zmlx.validate import Validation, Work


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


class Worse(Identity):
    """A patch that gets the logits wrong: one norm is turned around."""

    def patch(self, model):
        self.weight = model.model.norm.weight
        model.model.norm.weight = -self.weight
        return model

    def unpatch(self, model):
        model.model.norm.weight = self.weight
        return model


class Unsteady(Worse):
    """A patch that is off by another amount at each call."""

    def patch(self, model):
        super().patch(model)
        object.__setattr__(model, "__class__", self.noisy(type(model)))

    def unpatch(self, model):
        super().unpatch(model)
        object.__setattr__(model, "__class__", type(model).__mro__[1])

    def noisy(self, base):
        class Noisy(base):
            def __call__(self, *args, **kwargs):
                logits = super().__call__(*args, **kwargs)
                return logits * mx.random.uniform(1, 1.001, logits.shape)

        return Noisy


SHORT = {"prompt_tokens": (5,), "steps": 4, "text_tokens": 8}


def validate(patcher, work=SHORT, out=None, **options):
    options = {"model": "tiny-moe", **options}
    return Validation(Options(**options), Work(**work), out, patcher=patcher).run()


def broken(result):
    return [bound["name"] for bound in result["bounds"] if not bound["holds"]]


def test_equal_logits_have_no_distance():
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]], np.float32)
    found = distance(logits, logits)
    assert (found.rms, found.largest, found.mean_kl, found.worst_kl) == (0, 0, 0, 0)
    assert found.same_top == 2


def test_distances_are_those_of_their_definitions():
    reference = np.log(np.array([[0.5, 0.5], [0.75, 0.25]], np.float32))
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    found = distance(reference, logits)
    assert found.largest == pytest.approx(np.log(3), rel=1e-6)
    assert found.rms == pytest.approx(np.log(3) / np.sqrt(2), rel=1e-6)
    assert found.worst_kl == pytest.approx(0.5 * np.log(3), rel=1e-6)
    assert found.mean_kl == pytest.approx(0.25 * np.log(3), rel=1e-6)
    assert found.same_top == 1


def test_a_constant_added_to_all_logits_is_no_divergence():
    reference = np.array([[1.0, 2.0, 900.0]], np.float32)
    found = distance(reference, reference + 3)
    assert found.largest == 3
    assert found.mean_kl == pytest.approx(0, abs=1e-6)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits have shape \(1, 2\) but the reference \(1, 3\)"):
        distance(np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32))


def test_as_close_as_stock_or_as_float32s_own_noise():
    reference = np.array([[10.0, -10.0]], np.float32)
    exact, near, far = (distance(reference, reference + d) for d in (0, np.float32(5e-4), 1))
    assert at_least_as_close(reference, far, near)
    assert at_least_as_close(reference, exact, near)
    assert not at_least_as_close(reference, near, far)


def test_greedy_tokens_part_where_the_most_likely_first_differs():
    reference = np.array([[0, 1, 2], [5, 4.5, 1], [0, 9, 0]], np.float32)
    logits = np.array([[0, 1, 2], [1, 0, 4], [9, 0, 0]], np.float32)
    assert parting(reference, reference) is None
    assert parting(reference, logits) == Parting(1, 2, 0, margin=0.5, gap=4.0)


def test_the_perplexity_of_even_odds_is_the_number_of_tokens():
    assert perplexity(np.zeros((5, 7), np.float32), [1, 2, 3, 4, 5]) == pytest.approx(7)
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.1, 0.9]], np.float32))
    assert perplexity(logits, [0, 1, 0]) == pytest.approx(math.exp(-math.log(0.375) / 2))


def test_steps_are_those_of_a_greedy_generation():
    model, _, _, _ = load_model(Options("tiny-moe", dtype="float32"))
    found = run_steps(model, [5, 6, 7], 4)
    whole = np.array(model(mx.array([[5, 6, 7, *found.tokens[:-1]]]))[0, 2:])
    assert found.tokens == whole.argmax(-1).tolist()
    np.testing.assert_allclose(found.logits, whole, atol=1e-4)


def test_a_prompt_may_be_a_single_token():
    model, _, _, _ = load_model(Options("tiny-moe", dtype="float32"))
    found = run_steps(model, [5], 2)
    assert found.logits.shape == (2, 512)
    assert len(found.tokens) == 2


def test_stock_bfloat16_is_off_and_a_null_run_is_as_close(tmp_path):
    out = tmp_path / "validation.json"
    work = {**SHORT, "prompt_tokens": (3, 5), "prompts": 2}
    result = validate(Identity(), work, out, null_run=True)
    assert capsule.read(out) == result
    assert result["settings"]["prompt_tokens"] == [3, 3, 5, 5]
    assert len(result["cases"]) == 4
    assert result["stock"] == result["patched"]
    assert result["stock"]["rms"] > 1e-3
    assert result["holds"]
    assert [case["from_stock"] for case in result["cases"]] == [None] * 4
    assert "at least as close to float32 as stock" in report.markdown(result)


def test_a_worse_patch_breaks_the_bounds_and_they_are_named():
    result = validate(Worse())
    assert result["patched"]["rms"] > result["stock"]["rms"]
    assert not result["holds"]
    assert "logits, root mean square" in broken(result)
    assert "tokens, gap from float32's choice" in broken(result)
    assert "broken: logits, root mean square is" in report.markdown(result)
    assert "tokens after a prompt of 5: patched and stock part at" in report.markdown(result)


def test_runs_that_differ_from_each_other_break_a_bound():
    assert "prompts whose runs differ" in broken(validate(Unsteady()))
    assert validate(Unsteady(), {**SHORT, "runs": 1})["cases"][0]["reproducible"]["patched"]


def test_a_model_left_as_it_was_is_not_called_validated():
    class Left(Identity):
        def patch(self, model):
            model.zmlx = SimpleNamespace(
                patched=False, patterns={}, int8={}, exact={}, nodes_before=0, nodes_after=0,
                launches=0, bytes_per_token=0, reasons=["cache type X"], seconds=0.1,
                stock_calls={},
            )  # fmt: skip

    result = validate(Left())
    assert broken(result) == ["calls left to stock"]
    assert "- left to MLX: cache type X" in report.markdown(result)


def test_stock_parting_from_float32_is_followed_on_its_own_text():
    result = validate(Identity(), {**SHORT, "prompt_tokens": (4,), "steps": 12})
    case = result["cases"][0]
    assert case["stock"]["from_float32"]["position"] < 11
    runs = Counter(run["variant"] for run in result["runs"])
    assert runs == {"float32": 1, "stock": 2, "patched": 3}
    assert case["from_stock"] is None


def test_stock_in_float32_is_the_reference_itself():
    result = validate(Identity(), dtype="float32")
    assert result["stock"]["rms"] == 0
    assert result["text"]["stock"]["perplexity"] == result["text"]["float32"]["perplexity"]


def test_the_models_own_parameters_come_back():
    model, _, _, _ = load_model(Options("tiny-moe"))
    before = dict(tree_flatten(model.parameters()))
    with closeness.in_float32(model):
        run_steps(model, [1, 2], 1)
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)


def test_an_interrupted_validation_leaves_its_runs_marked_incomplete(tmp_path):
    def interrupt(doing, done, total):
        if doing == "patched: prompt 2":
            raise KeyboardInterrupt

    out = tmp_path / "validation.json"
    work = Work(prompt_tokens=(3, 4), steps=2, text_tokens=0, runs=1)
    with pytest.raises(KeyboardInterrupt):
        Validation(Options("tiny-moe"), work, out, interrupt, Identity()).run()
    result = capsule.read(out)
    assert (result["complete"], result["stopped"]) == (False, "interrupted")
    assert len(result["cases"]) == 1
    assert result["holds"] is None
    assert "incomplete: interrupted" in report.markdown(result)


ARGUMENTS = ["--steps", "2", "--prompt-tokens", "3,4", "--text-tokens", "4"]


def test_the_command_writes_the_result_and_fails_when_further_away(tmp_path, capsys, monkeypatch):
    out = tmp_path / "validation.json"
    arguments = ["validate", "tiny-moe", *ARGUMENTS]
    cli.main([*arguments, "--null-run", "--json", str(out)])
    assert "at least as close" in capsys.readouterr().out
    cli.main(["report", str(out)])
    assert "| | float32 | stock mlx_lm | patched |" in capsys.readouterr().out
    monkeypatch.setattr(zmlx.validate, "Patch", lambda options, **more: Worse())
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 1
    assert "not as it should be: bounds broken: " in capsys.readouterr().err


def test_the_module_is_the_command_and_patterns_reach_the_patch(monkeypatch, capsys, tmp_path):
    out = tmp_path / "validation.json"
    chosen = [name for name in _ext.pattern_names() if not name.startswith("norm_")]
    more = ["--patterns", ",".join(chosen), "--exact", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["validate.py", "tiny-qwen3", *ARGUMENTS, *more])
    monkeypatch.delitem(sys.modules, "zmlx.validate")
    runpy.run_module("zmlx.validate", run_name="__main__")
    assert f"exactly with {', '.join(chosen)} only" in capsys.readouterr().out
    result = capsule.read(out)
    assert result["settings"]["patterns"] == chosen
    assert set(result["patch"]["patterns"]) <= set(chosen)
    assert result["holds"]


def test_the_text_of_the_perplexity_may_come_from_a_file(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("abc", encoding="utf-8")
    arguments = ["--text", str(tmp_path / "text.txt"), "--null-run"]
    cli.main(["validate", "tiny-moe", *ARGUMENTS[:4], *arguments])
    assert "perplexity of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ({"steps": 0}, "--steps must be 1 or more but got 0"),
        ({"prompt_tokens": (4, 0)}, "--prompt-tokens must be 1 or more but got 0"),
        ({"prompts": 0}, "--prompts must be 1 or more but got 0"),
        ({"runs": 0}, "--runs must be 1 or more but got 0"),
        ({"stock_runs": 0}, "--stock-runs must be 1 or more but got 0"),
        ({"text_tokens": 1}, "--text-tokens must be 0, or 2 or more, but got 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(work, message):
    with pytest.raises(ValueError, match=message):
        Validation(Options("tiny-moe"), Work(**work))


def test_prompt_lengths_must_be_numbers(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", "tiny-moe", "--prompt-tokens", "4,x"])
    assert stop.value.code == 2
    assert "must be numbers separated by commas but got '4,x'" in capsys.readouterr().err
