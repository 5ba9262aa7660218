# tests/python/test_doctor.py: what is missing is named, with the command to get it.
from __future__ import annotations

import importlib.util
import os
import sys

import mlx.core as mx
import pytest

from zmlx import _ext, cli, doctor
from zmlx.bench import capsule


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "READ_BYTES", 4 << 20)
    monkeypatch.setattr(doctor, "LAUNCHES", 10)


def test_a_fit_machine_is_shown_and_the_capsule_written(tmp_path, capsys):
    out = tmp_path / "doctor.json"
    cli.main(["doctor", "--json", str(out)])
    text = capsys.readouterr().out
    for name in ("mlx-lm", "instruction sets", "read bandwidth", "launch cost", "cache folder"):
        assert name in text
    document = capsule.read(out)
    assert document["complete"]
    assert document["read_bandwidth_bytes_per_s"] > 1e6
    assert document["launch_s"] > 0
    assert document["barrier_s"] > 0
    cli.main(["report", str(out)])
    assert "| read bandwidth |" in capsys.readouterr().out


def test_a_failure_ends_the_command_with_1_and_names_it(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scipy" else real(name)
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert f"{sys.executable} -m pip install scipy" in captured.out
    assert "not fit for zmlx: scipy." in captured.err


def test_another_version_comes_with_the_command_for_the_right_one():
    assert doctor.fits("mlx-lm", "1.0", "1.0")["status"] == "ok"
    assert doctor.fits("mlx-lm", "1.0", None)["status"] == "ok"
    found = doctor.fits("mlx-lm", "1.1", "1.0")
    assert (found["status"], found["found"]) == ("failure", "1.1, but 1.0 is needed")
    assert found["remedy"] == f'{sys.executable} -m pip install "mlx-lm==1.0"'


def test_pins_are_read_off_the_installed_package(monkeypatch):
    needed = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "numpy", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    assert doctor._pins() == {"mlx": "0.32.4", "mlx-lm": "0.32.2"}


def test_more_threads_than_cores_are_advised_against():
    assert doctor.threads(2, 2)["status"] == "ok"
    found = doctor.threads(8, 2)
    assert (found["status"], found["remedy"]) == ("warning", "export ZMLX_NUM_THREADS=2")


def test_a_cpu_without_vectors_is_a_warning():
    assert doctor.simd(["AVX2"])["status"] == "ok"
    assert doctor.simd(["EMU128"])["status"] == "warning"


def test_a_missing_compiler_comes_with_the_command_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor.compiler({})
    assert (found["status"], found["found"]) == ("warning", "none of c++, g++, clang++")
    assert "install" in found["remedy"]
    tool = tmp_path / "mycc"
    tool.write_text("")
    tool.chmod(0o755)
    assert doctor.compiler({"CXX": "mycc"})["found"] == str(tool)


def test_a_cache_folder_that_cannot_be_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    found = doctor.cache(tmp_path / "file" / "zmlx")
    assert found["status"] == "failure"
    assert "Not a directory" in found["found"]
    assert "export XDG_CACHE_HOME" in found["remedy"]


def test_a_cache_folder_that_anybody_may_write_is_a_warning(tmp_path):
    folder = tmp_path / "zmlx"
    assert doctor.cache(folder)["status"] == "ok"
    os.chmod(folder, 0o777)
    assert doctor.cache(folder)["remedy"] == f"chmod o-w {folder}"


def test_a_default_device_without_kernels_is_a_warning(monkeypatch):
    assert doctor.devices()["status"] == "ok"
    monkeypatch.setattr(doctor.mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(doctor._ext, "why_no_cuda", lambda: "no driver")
    assert doctor.devices()["remedy"] == "mx.set_default_device(mx.cpu)"
    monkeypatch.setattr(doctor._ext, "why_no_cuda", lambda: "")
    assert doctor.devices()["status"] == "ok"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _ext.read_bandwidth(10, 1), r"\[read_bandwidth\] the buffer's size in blocks"),
        (lambda: _ext.read_bandwidth(1 << 20, 0), r"\[read_bandwidth\] repeats must be positive"),
        (lambda: _ext.launch_seconds(0), r"\[launch_seconds\] repeats must be positive"),
        (lambda: _ext.barrier_seconds(0), r"\[barrier_seconds\] repeats must be positive"),
    ],
)
def test_measurements_of_nothing_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
