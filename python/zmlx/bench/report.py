# zmlx/bench/report.py: a result document as a table for people: in the terminal and as Markdown.
"""Outputs are compared before speeds: a report begins with what the two sides generated."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from zmlx.bench.inference import METRICS, Metric
from zmlx.bench.statistics import summarize

HEADINGS = {
    "inference": ("", "stock mlx_lm", "patched", "gain"),
    "validation": ("", "float32", "stock mlx_lm", "patched"),
    "decision": ("step", "candidate", "time", "kept", "why"),
    "doctor": ("", "", "found", "remedy"),
}
# Fields of `closeness.Distance`, as people read them.
DISTANCES = {
    "rms": "logits from float32's, root mean square",
    "largest": "logits from float32's, largest",
    "mean_kl": "KL divergence, mean, nats",
    "worst_kl": "KL divergence, worst step, nats",
    "same_top": "steps with float32's most likely token",
}
RATES = {"prompt_tps": "prompt, tok/s", "generation_tps": "generation, tok/s"}


def tables(result: dict[str, Any]) -> Group:
    """What a terminal shows: notes, then the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(HEADINGS[result["kind"]]):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows(result):
        table.add_row(*row)
    return Group(*(Text(note) for note in notes(result)), "", table)


def markdown(result: dict[str, Any]) -> str:
    """The same as Markdown, for a README."""
    lines = [*(f"- {note}" for note in notes(result)), ""]
    headings = HEADINGS[result["kind"]]
    lines.append(f"| {' | '.join(headings)} |".replace("|  |", "| |"))
    lines.append("|---" + "|---:" * (len(headings) - 1) + "|")
    lines += [f"| {' | '.join(row)} |" for row in rows(result)]
    return "\n".join(lines) + "\n"


def show(result: dict[str, Any], console: Console) -> None:
    """Prints `tables`."""
    console.print(tables(result), highlight=False, soft_wrap=True)


def notes(result: dict[str, Any]) -> list[str]:
    """One line each: model, machine, work, fidelity, patch, and whether the result is whole."""
    if result["kind"] == "validation":
        return [
            _model(result),
            _machine(result),
            _steps(result),
            *_cases(result),
            *_left(result["patch"]),
            *_bounds(result),
            *_incomplete(result),
        ]
    if result["kind"] == "decision":
        return [_model(result), _machine(result), *_decision(result), *_incomplete(result)]
    if result["kind"] == "doctor":
        return _incomplete(result)
    return [
        _model(result),
        _machine(result),
        _work(result),
        _fidelity(result),
        *_patch(result),
        *_incomplete(result),
    ]


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows: metric, both sides as median (minimum-maximum), gain."""
    if result["kind"] == "validation":
        return [*_distances(result), *_perplexity(result), *_rates(result)]
    if result["kind"] == "decision":
        return _candidates(result)
    if result["kind"] == "doctor":
        return [
            (check["name"], check["status"], check["found"], check["remedy"] or "")
            for check in result["checks"]
        ]
    found = []
    for metric in METRICS:
        entry = result["summary"][metric.field]
        if entry["stock"] is None and entry["patched"] is None:
            continue
        sides = (_side(metric, entry["stock"]), _side(metric, entry["patched"]))
        found.append((f"{metric.title}, {metric.unit}", *sides, _gain(entry)))
    return found


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _side(metric: Metric, side: dict[str, Any] | None) -> str:
    if side is None:
        return "-"
    median, least, most = (number(side[name] * metric.scale) for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least}-{most})"


def _gain(entry: dict[str, Any]) -> str:
    if entry["gain"] is None:
        return "-"
    return f"{number(entry['gain'])}x" if entry["differs"] else "no difference"


def _model(result: dict[str, Any]) -> str:
    model = result["model"]
    bits = f"{model['bits']} bit group {model['group_size']}, " if model["bits"] else ""
    return (
        f"model: {model['name']} ({model['model_type']}, {model['layers']} layers, {bits}"
        f"{' and '.join(model['dtypes'])}, {number(model['weight_bytes'] / 1e9)} GB)"
    )


def _machine(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        f"machine: {machine['cpu']}, {machine['usable_cores']} cores, "
        f"{result['settings']['threads']} threads for zmlx; mlx {versions['mlx']}, "
        f"mlx_lm {versions['mlx_lm']}"
    )


def _rounded(settings: dict[str, Any]) -> str:
    return " with int8 activations" if settings.get("activations") == "int8" else ""


def _steps(result: dict[str, Any]) -> str:
    settings = result["settings"]
    null = " (null run: stock in its place)" if settings["null_run"] else ""
    options = " exactly" if settings["exact"] else ""
    options += _rounded(settings)
    if settings["patterns"] is not None:
        options += f" with {', '.join(settings['patterns'])} only"
    return (
        f"work: {settings['steps']} tokens after prompts of "
        f"{', '.join(map(str, settings['prompt_tokens']))}, chosen by float32 and given to stock "
        f"and the patched model{null}; a text of {settings['text_tokens']}; stock "
        f"{settings['stock_runs']} x, patched{options} {settings['runs']} x"
    )


def _cases(result: dict[str, Any]) -> list[str]:
    """Where greedy tokens part: the patched model's from stock's, and both from float32's."""
    lines = []
    for case in result["cases"]:
        pairs = (
            ("patched and stock", case["from_stock"]),
            ("patched and float32", case["patched"]["from_float32"]),
            ("stock and float32", case["stock"]["from_float32"]),
        )
        found = [f"{name} {_parting(apart)}" for name, apart in pairs if apart is not None]
        text = "; ".join(found) or f"all {len(case['tokens'])} equal on all sides"
        lines.append(f"tokens after a prompt of {case['prompt_tokens']}: {text}")
    return lines


def _parting(apart: dict[str, Any]) -> str:
    return (
        f"part at {apart['position']} ({apart['token']}, {apart['reference_token']}; top two "
        f"logits {apart['margin']:.3g} apart)"
    )


def _bounds(result: dict[str, Any]) -> list[str]:
    broken = [bound for bound in result["bounds"] if not bound["holds"]]
    lines = [
        f"broken: {bound['name']} is {bound['value']:.4g}, above {bound['bound']:.4g}"
        for bound in broken
    ]
    if result["holds"]:
        lines.append(
            f"verdict: all {len(result['bounds'])} bounds hold: the patched model is at least as "
            "close to float32 as stock"
        )
    return lines


def _distances(result: dict[str, Any]) -> list[tuple[str, ...]]:
    if result["stock"] is None:
        return []
    sides = [result[side] for side in ("stock", "patched")]
    return [
        (title, "", *(f"{side[field]:.4g}" for side in sides)) for field, title in DISTANCES.items()
    ]


def _perplexity(result: dict[str, Any]) -> list[tuple[str, ...]]:
    text = result["text"]
    if text is None:
        return []
    sides = (text[side]["perplexity"] for side in ("float32", "stock", "patched"))
    return [(f"perplexity of {text['tokens']} tokens", *(f"{value:.6g}" for value in sides))]


def _rates(result: dict[str, Any]) -> list[tuple[str, ...]]:
    found = []
    for name, title in RATES.items():
        sides = []
        for variant in ("float32", "stock", "patched"):
            runs = [run[name] for run in result["runs"] if run["variant"] == variant]
            rates = summarize(runs)
            sides.append(number(rates.median) if rates else "-")
        found.append((title, *sides))
    return found


def _decision(result: dict[str, Any]) -> list[str]:
    settings = result["settings"]
    lines = [
        f"work: prompts of {settings['prompt_tokens']} and {settings['steps']} steps; against "
        f"stock {settings['stock_prompt_tokens']} and {settings['stock_steps']}; "
        f"{number(result['seconds'])} s of {number(settings['budget_s'])} s"
    ]
    for name, phase in result["phases"].items():
        chosen = phase["chosen"]
        noise = "" if phase["noise"] is None else f"; noise {100 * phase['noise']:.1f}%"
        lines.append(f"{name}: {'stock' if chosen is None else ', '.join(chosen)}{noise}")
    return lines


def _candidates(result: dict[str, Any]) -> list[tuple[str, ...]]:
    found = []
    for name, phase in result["phases"].items():
        for candidate in phase["candidates"]:
            change = (candidate["trial"] or {}).get("change")
            ratio = f"{100 * (change['ratio'] - 1):+.1f}%" if change else "-"
            kept = "yes" if candidate["kept"] else "no"
            found.append((name, candidate["name"], ratio, kept, candidate["why"]))
    return found


def _work(result: dict[str, Any]) -> str:
    sides = []
    for variant in ("stock", "patched"):
        share = result["settings"][variant]
        runs = sum(run["variant"] == variant for run in result["runs"])
        how = _rounded(result["settings"]) if variant == "patched" else ""
        sides.append(
            f"{variant}{how} {runs} {'run' if runs == 1 else 'runs'} of a prompt of "
            f"{share['prompt_tokens']} and {share['max_tokens']} new tokens"
        )
    null = " (null run: both sides are stock)" if result["settings"]["null_run"] else ""
    return f"work: {'; '.join(sides)}{null}"


def _fidelity(result: dict[str, Any]) -> str:
    fidelity = result["fidelity"]
    if fidelity is None:
        return "tokens: not compared"
    unsteady = [variant for variant, same in fidelity["reproducible"].items() if not same]
    also = f"; the runs of {' and of '.join(unsteady)} differ from each other" if unsteady else ""
    if fidelity["equal"]:
        return f"tokens: all {fidelity['compared']} equal{also}"
    first = fidelity["first_difference"]
    text = f"tokens: equal up to {first['position']} of {fidelity['compared']}, then "
    text += f"{first['stock_token']} (stock) and {first['patched_token']} (patched)"
    if first["margin"] is not None:
        text += f"; stock's top two logits lie {first['margin']:.4g} apart there"
    if first["gap"] is not None:
        text += f", its best and the patched choice {first['gap']:.4g}"
    return text + also


def _patch(result: dict[str, Any]) -> list[str]:
    if not result["patch"] or result["patch"][0]["report"] is None:
        return []
    report = result["patch"][-1]["report"]
    return [*(_plan(result, report) if report["patched"] else []), *_left(report)]


def _left(report: dict[str, Any] | None) -> list[str]:
    """What the patch did not take over."""
    if report is None:
        return []
    lines = [] if report["patched"] else ["patch: left the model as it was"]
    lines += [f"left to MLX: {reason}" for reason in report["reasons"]]
    return lines + [
        f"calls that stock answered: {count} ({reason})"
        for reason, count in report["stock_calls"].items()
    ]


def _plan(result: dict[str, Any], report: dict[str, Any]) -> list[str]:
    first, *later = (number(patch["seconds"]) for patch in result["patch"])
    again = f" (again: {', '.join(later)} s)" if later else ""
    line = (
        f"patch: {first} s{again}; graph of {report['nodes_before']:,} nodes to "
        f"{report['nodes_after']:,}, {report['launches']:,} launches"
    )
    speed = result["summary"]["generation_tps"]["patched"]
    if report["bytes_per_token"] and speed:
        rate = report["bytes_per_token"] * speed["median"] / 1e9
        line += (
            f"; {number(report['bytes_per_token'] / 1e6)} MB a token, so {number(rate)} GB/s "
            "while generating"
        )
    fired = ", ".join(f"{name} {count}" for name, count in report["patterns"].items())
    return [line, f"patterns: {fired}" if fired else "patterns: none fired"]


def _incomplete(result: dict[str, Any]) -> list[str]:
    return [] if result["complete"] else [f"incomplete: {result['stopped']}"]
