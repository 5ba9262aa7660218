"""The examples of docs/authoring.md and examples/write_a_kernel.py run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_guides_examples_run_one_after_the_other():
    text = (ROOT / "docs" / "authoring.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/authoring.md, example {number}", "exec"), scope)


def test_the_example_runs(capsys):
    runpy.run_path(str(ROOT / "examples" / "write_a_kernel.py"), run_name="__main__")
    assert "gradient" in capsys.readouterr().out
