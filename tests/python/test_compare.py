# tests/python/test_compare.py: two results of the same work, and what must not be compared.
from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from zmlx import cli
from zmlx.bench import capsule, compare
from zmlx.bench.compare import differences, rows, worse
from zmlx.bench.inference import Benchmark, Identity, Options

RUNS = 10


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One real result of a null run, to be varied."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        options = Options("tiny-moe", runs=1, max_tokens=3, prompt_tokens=3, null_run=True)
        return Benchmark(options, patcher=Identity()).run()


def result(measured, seed=0, speed=1.0, runs=RUNS, memory=100.0, noise=0.02):
    """The result with made-up runs: the patched model `speed` times as fast, 2% of noise."""
    random = np.random.default_rng(seed)
    document = copy.deepcopy(measured)
    example = document["runs"][0]
    document["runs"] = []
    for index in range(2 * runs):
        variant = ("stock", "patched")[index % 2]
        factor = np.exp(random.normal(0, noise, 4)) * (speed if variant == "patched" else 1)
        a, b, c, d = factor.tolist()
        run = {**example, "index": index, "variant": variant}
        run |= {"prompt_tps": 10 * a, "generation_tps": 20 * b}
        run |= {"time_to_first_token_s": 1 / c, "total_s": 2 / d}
        run |= {"peak_memory_bytes": memory, "peak_resident_bytes": None}
        document["runs"].append(run)
    return document


def verdicts(found, side="patched"):
    return {row.title: row.verdict for row in found if row.side == side}


def test_a_faster_model_is_faster_in_rates_and_times_and_stock_is_not(measured):
    found = rows(result(measured, 0), result(measured, 1, speed=1.2))
    assert verdicts(found) == {
        "prompt, tok/s": "faster",
        "generation, tok/s": "faster",
        "first token, ms": "faster",
        "total, s": "faster",
        "memory, MLX, GB": "no difference",
    }
    assert set(verdicts(found, "stock").values()) == {"no difference"}
    assert worse(found) == []
    assert worse(rows(result(measured, 1, speed=1.2), result(measured, 0)))[0] == "prompt, tok/s"


def test_more_memory_is_worse_by_its_own_word(measured):
    found = rows(result(measured), result(measured, memory=130.0))
    assert verdicts(found)["memory, MLX, GB"] == "more"
    assert worse(found) == ["memory, MLX, GB"]
    found = rows(result(measured, memory=130.0), result(measured))
    assert verdicts(found)["memory, MLX, GB"] == "less"


def test_equal_results_get_any_verdict_in_at_most_the_stated_share(measured):
    count = 150
    wrong = sum(
        any(
            row.verdict != "no difference"
            for row in rows(result(measured, 2 * i), result(measured, 2 * i + 1), threshold=0)
        )
        for i in range(count)
    )
    assert wrong / count <= 0.05 + 3 * (0.05 * 0.95 / count) ** 0.5


def test_single_runs_have_no_verdict(measured):
    found = rows(result(measured, runs=1), result(measured, speed=9, runs=1))
    assert set(verdicts(found).values()) == {"single runs"}
    assert worse(found) == []


def test_what_differs_is_named_and_what_may_differ_is_not(measured):
    a, b = result(measured), result(measured)
    b["machine"]["load_average"] += 3
    b["settings"]["runs"] += 3
    b["versions"]["zmlx"] = "9"
    assert differences(a, b) == []
    b["machine"]["cpu"] = "another"
    b["model"]["layers"] = 77
    b["settings"]["threads"] = 99
    b["environment"]["ZMLX_X"] = "1"
    b["complete"], b["stopped"] = False, "interrupted"
    assert differences(a, b) == [
        "the second is incomplete: interrupted",
        f"machine cpu: {a['machine']['cpu']} and another",
        "model layers: 2 and 77",
        f"settings threads: {a['settings']['threads']} and 99",
        "environment ZMLX_X: None and 1",
    ]


def test_versions_and_commits_that_differ_are_told_and_do_not_hinder(measured):
    a, b = result(measured), result(measured)
    a["commit"] = {"hash": "a" * 40, "modified": True}
    b["commit"] = None
    b["versions"]["mlx"] = "9"
    assert differences(a, b) == []
    assert compare.changes(a, b) == [
        f"mlx {a['versions']['mlx']} and 9",
        "commit aaaaaaaaaa with changes and unknown",
    ]
    assert compare.changes(a, a) == []


@pytest.fixture
def files(tmp_path, measured):
    """`files(a, b)` writes two results and gives the command that compares them."""

    def write(a, b):
        for name, document in (("a", a), ("b", b)):
            capsule.write(tmp_path / f"{name}.json", document)
        return ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]

    return write


def status_of(arguments):
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_command_ends_with_0_when_nothing_is_worse(files, measured, capsys):
    assert status_of(files(result(measured), result(measured, 1, speed=1.3))) == 0
    out = capsys.readouterr().out
    assert "generation, tok/s" in out
    assert "faster" in out


def test_the_command_ends_with_1_when_something_is_worse(files, measured, capsys):
    assert status_of(files(result(measured, 1, speed=1.3), result(measured))) == 1
    assert "is worse than" in capsys.readouterr().err


def test_results_of_another_machine_are_refused_without_force(files, measured, capsys):
    other = result(measured)
    other["machine"]["cpu"] = "another"
    arguments = files(result(measured), other)
    assert status_of(arguments) == 2
    error = capsys.readouterr().err
    assert "not comparable: machine cpu: " in error
    assert "Use --force" in error
    assert status_of([*arguments, "--force"]) == 0
    assert "differs: machine cpu: " in capsys.readouterr().out


def test_other_kinds_and_newer_files_are_refused(files, measured, tmp_path, capsys):
    rest = {"checks": [], "read_bandwidth_bytes_per_s": 1, "launch_s": 1, "barrier_s": 1}
    doctor = {**capsule.envelope("doctor", None, {}, ["zmlx"]), **rest}
    assert status_of(files(result(measured), doctor)) == 2
    assert "is of kind doctor; inference and validation can be" in capsys.readouterr().err
    arguments = files(result(measured), result(measured))
    (tmp_path / "b.json").write_text(json.dumps({**result(measured), "schema_version": 99}))
    assert status_of(arguments) == 2
    assert "written by a newer zmlx" in capsys.readouterr().err


def test_validations_are_compared_by_their_rates():
    runs = [
        {"variant": side, "prompt_tps": None, "generation_tps": 10.0 + i}
        for i in range(3)
        for side in ("float32", "stock", "patched")
    ]
    found = compare.rows({"runs": runs}, {"runs": runs})
    assert [(row.side, row.title) for row in found] == [
        ("stock", "generation, tok/s"),
        ("patched", "generation, tok/s"),
    ]
