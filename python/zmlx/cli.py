# zmlx/cli.py: the `zmlx` command.
"""Command line: `zmlx bench`, `validate`, `compare`, `report`, `doctor`, `explain`, `presets`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from rich.console import Console
from rich.table import Table

import zmlx
from zmlx import presets
from zmlx.bench import batch, capsule, compare, micro, report
from zmlx.bench.inference import ACTIVATIONS, Benchmark, Options
from zmlx.bench.progress import Bar
from zmlx.bench.statistics import CONFIDENCE
from zmlx.validate import TEXT, Validation, Work

INTERRUPTED = 130
RESULT = click.Path(exists=True, dir_okay=False, path_type=Path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. What goes wrong is one line on stderr and exit status 2, or 1."""
    try:
        cli.main(arguments, prog_name="zmlx", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted.", INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
    print(f"zmlx: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(f"{zmlx.__version__} (for mlx {mx.__version__})", prog_name="zmlx")
def cli() -> None:
    """Runs MLX models faster, and measures by how much."""


@cli.group()
def bench() -> None:
    """Measures against stock MLX."""


bench.add_command(batch.command)
bench.add_command(micro.command)

PRESET_OPTIONS = [
    click.option("--dtype", type=click.Choice(list(presets.DTYPES)), help="Of the activations."),
    click.option("--bits", type=int, default=4, show_default=True, help="A preset's weights."),
    click.option("--group-size", type=int, default=64, show_default=True, help="Of a preset."),
    click.option("--layers", type=int, help="Cuts a preset to so many layers."),
    click.option("--seed", type=int, default=0, show_default=True),
]


ACTIVATIONS_OPTION = click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    default="exact",
    show_default=True,
    help="int8: patch with 8-bit activations.",
)


def preset_options(command: Any) -> Any:
    """Adds the options that choose how a preset is written."""
    for option in reversed(PRESET_OPTIONS):
        command = option(command)
    return command


@bench.command()
@click.option("--model", required=True, help="A preset, a folder or a Hugging Face name.")
@click.option("--runs", type=int, default=3, show_default=True, help="Of each side.")
@click.option("--max-tokens", type=int, default=150, show_default=True, help="To generate.")
@click.option("--prompt-tokens", type=int, default=306, show_default=True, help="Random ones.")
@click.option("--prompt-text", help="Instead of random tokens.")
@click.option("--stock-runs", type=int, help="Fewer runs of stock.")
@click.option("--stock-max-tokens", type=int, help="Fewer new tokens in stock's runs.")
@click.option("--stock-prompt-tokens", type=int, help="A shorter prompt in stock's runs.")
@preset_options
@ACTIVATIONS_OPTION
@click.option("--threads", type=int, help="For zmlx; by default every core it may use.")
@click.option("--null-run", is_flag=True, help="Stock against stock: shows the noise.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Result.")
def inference(out: Path | None, **options: Any) -> None:
    """Stock mlx_lm against the patched model, on the same weights, in alternating runs."""
    measure(Options(**options), out, Console(stderr=True), _console())


def measure(options: Options, out: Path | None, status: Console, console: Console) -> None:
    """Runs one benchmark with a progress bar on `status` and its table on `console`."""
    bar = Bar(status)
    benchmark = Benchmark(options, out, bar)
    with _what_is_left(lambda: benchmark.result, out), bar.progress:
        result = benchmark.run()
    report.show(result, console)


def _console() -> Console:
    # A pipe has no width: nothing is wrapped there.
    return Console(width=None if sys.stdout.isatty() else 200)


@cli.command()
@click.argument("model")
@click.option(
    "--prompt-tokens", default="4,16,48", show_default=True, help="Lengths of random prompts."
)
@click.option("--prompts", type=int, default=1, show_default=True, help="Of each length.")
@click.option("--prompt-text", help="One prompt, instead of random ones.")
@click.option("--steps", type=int, default=16, show_default=True, help="Tokens after a prompt.")
@click.option("--runs", type=int, default=2, show_default=True, help="Of the patched model.")
@click.option("--stock-runs", type=int, default=1, show_default=True, help="Of stock.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file for the perplexity, instead of a few built-in sentences.",
)
@click.option("--text-tokens", type=int, default=64, show_default=True, help="Of it; 0: none.")
@click.option("--exact", is_flag=True, help="Patch with exact=True.")
@click.option("--patterns", help="Patch with these patterns only, separated by commas.")
@preset_options
@ACTIVATIONS_OPTION
@click.option("--threads", type=int, help="For zmlx; by default every core it may use.")
@click.option("--null-run", is_flag=True, help="Stock in the patched model's place.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Result.")
def validate(
    model: str,
    prompt_tokens: str,
    prompts: int,
    steps: int,
    runs: int,
    stock_runs: int,
    text: Path | None,
    text_tokens: int,
    exact: bool,
    patterns: str | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Compares the patched MODEL's logits and tokens with stock's and with a float32 run's.

    Ends with status 1 unless all bounds hold: errors no larger than stock's own, and other
    tokens only where stock's own error could decide. docs/measuring.md lists the bounds.
    """
    work = Work(
        prompt_tokens=_numbers("--prompt-tokens", prompt_tokens),
        prompts=prompts,
        steps=steps,
        runs=runs,
        stock_runs=stock_runs,
        text=text.read_text(encoding="utf-8") if text else TEXT,
        text_tokens=text_tokens,
        exact=exact,
        patterns=tuple(patterns.split(",")) if patterns else None,
    )
    bar = Bar(Console(stderr=True), "parts")
    validation = Validation(Options(model, **options), work, out, bar)
    with _what_is_left(lambda: validation.document, out), bar.progress:
        result = validation.run()
    report.show(result, _console())
    if not result["holds"]:
        broken = sum(not bound["holds"] for bound in result["bounds"])
        raise ValueError(f"the patched model is not as it should be: bounds broken: {broken}.")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f"{option} must be numbers separated by commas but got '{text}'."
        raise click.BadParameter(message) from None


@contextlib.contextmanager
def _what_is_left(document: Callable[[], dict[str, Any]], out: Path | None) -> Iterator[None]:
    """After Ctrl-C says where the runs are that were made."""
    try:
        yield
    except KeyboardInterrupt:
        if document() and out is not None:
            runs = len(document()["runs"])
            text = f"{runs} runs are in {out}, marked incomplete."
            Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        raise


@cli.command()
@click.argument("model")
@click.option("--tokens", type=int, default=1, show_default=True, help="In the step: 1 is decode.")
@click.option("--target", type=click.Choice(["cpu", "cuda"]), help="By default MLX's device.")
@preset_options
@ACTIVATIONS_OPTION
def explain(model: str, tokens: int, target: str | None, **options: Any) -> None:
    """Prints MODEL's graph before and after rewriting, and the plan with its launches and bytes."""
    from zmlx import patch
    from zmlx.bench.inference import load_model

    if tokens < 1:
        raise click.BadParameter(f"--tokens must be 1 or more but got {tokens}.")
    loaded, *_ = load_model(Options(model=model, **options))
    activations = options["activations"]
    text = patch.explain(loaded, tokens=tokens, target=target or "", activations=activations)
    click.echo(text)


@cli.command("report")
@click.argument("file", type=RESULT)
def report_(file: Path) -> None:
    """Prints a result FILE as Markdown."""
    click.echo(report.markdown(capsule.read(file)), nl=False)


@cli.command("compare")
@click.argument("first", type=RESULT)
@click.argument("second", type=RESULT)
@click.option("--force", is_flag=True, help="Compare what is not comparable.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Smaller differences, as a share, are none.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=CONFIDENCE,
    show_default=True,
    help="Of all verdicts together.",
)
def compare_(first: Path, second: Path, force: bool, threshold: float, confidence: float) -> None:
    """Tests whether SECOND differs from FIRST, figure by figure, from their raw runs.

    Status 0: nothing of the patched model got worse; 1: something did; 2: the results are not
    comparable (another machine, model or settings) or no results.
    """
    a, b = (_comparable(file) for file in (first, second))
    if a["kind"] != b["kind"]:
        raise click.UsageError(f"{first} is of kind {a['kind']} but {second} of {b['kind']}.")
    different = compare.differences(a, b)
    if different and not force:
        raise click.UsageError(
            f"the results are not comparable: {'; '.join(different)}. Use --force to compare them."
        )
    console = _console()
    for line in [*different, *compare.changes(a, b)]:
        console.print(f"differs: {line}", highlight=False, soft_wrap=True)
    found = compare.rows(a, b, threshold, confidence)
    compare.show(found, console)
    worse = compare.worse(found)
    if worse:
        raise ValueError(f"{second} is worse than {first}: {'; '.join(worse)}.")


def _comparable(file: Path) -> dict[str, Any]:
    try:
        document = capsule.read(file)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if document["kind"] not in compare.KINDS:
        raise click.UsageError(
            f"{file} is of kind {document['kind']}; {' and '.join(compare.KINDS)} can be compared."
        )
    return document


@cli.command()
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Result.")
def doctor(out: Path | None) -> None:
    """Checks versions, devices, threads, memory speed, compiler and cache folder.

    Ends with status 1 if zmlx cannot work as it should.
    """
    from zmlx import doctor as examination

    result = examination.examine(out)
    report.show(result, _console())
    failed = [check["name"] for check in result["checks"] if check["status"] == "failure"]
    if failed:
        raise ValueError(f"not fit for zmlx: {', '.join(failed)}.")


@cli.group("presets")
def presets_() -> None:
    """Models of a given geometry with random weights."""


@presets_.command("list")
def presets_list() -> None:
    """Lists the presets."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "parameters, M", "active, M", "4 bit, GB", "layers"):
        table.add_column(column, justify="left" if column == "name" else "right")
    table.add_column("what")
    for name in presets.names():
        facts = presets.describe(name)
        table.add_row(
            name,
            f"{facts['parameters'] / 1e6:,.1f}",
            f"{facts['active_parameters'] / 1e6:,.1f}",
            f"{facts['bytes'] / 1e9:.3f}",
            str(facts["layers"]),
            facts["what"],
        )
    _console().print(table)


@presets_.command("write")
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), required=False)
@preset_options
def presets_write(name: str, folder: Path | None, dtype: str | None, **options: Any) -> None:
    """Writes preset NAME to FOLDER (by default the user's cache) and prints where."""
    click.echo(presets.write(name, folder, dtype=dtype or "bfloat16", **options))
