"""What `import zmlx` says where it does not fit the installed MLX."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_another_version_of_mlx_is_refused_and_the_command_is_named() -> None:
    done = run("import mlx.core as mx; mx.__version__ = '9.9.9'; import zmlx")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: zmlx was built for mlx 0.")
    assert "but mlx 9.9.9 is installed. Run: " in message
    assert "-m pip install" in message


def test_an_extension_that_does_not_load_is_explained() -> None:
    done = run("import sys; sys.modules['zmlx._ext'] = None; import zmlx")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "zmlx's extension does not load with mlx " in message
    assert "pip install --force-reinstall zmlx" in message
