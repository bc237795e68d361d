"""benchmarks/devices.py with pretended devices: it counts right, and a wrong row ends it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--rows", "4", "--batch-rows", "8", "--clients", "4", "--feeders", "4"]
QUICK = ["--http-processes", "2", "--rounds", "1", "--seconds", "0.5", "--warm-up", "0.3"]


@pytest.fixture(scope="module")
def devices() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("devices", FOLDER / "devices.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["devices"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def known(devices: Any) -> Any:
    expected = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    return devices.Known(np.zeros((2, 3, 3, 8, 8), np.uint8), expected, 5e-3)


def test_right_rows_pass(devices: Any) -> None:
    known(devices).check(1, known(devices).expected[1] * 1.001)


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1]])
def test_swapped_and_missing_rows_do_not(devices: Any, order: list[int]) -> None:
    with pytest.raises(RuntimeError, match="wrong answer"):
        known(devices).check(0, known(devices).expected[0][order])


def test_rows_that_look_alike_prove_nothing(devices: Any) -> None:
    alike = np.ones((2, 3, 8), np.float32)
    with pytest.raises(RuntimeError, match="too near"):
        devices.Known(np.zeros((2, 3, 3, 8, 8), np.uint8), alike, 5e-3).check_distinct()


@pytest.mark.soak  # three processes that import torch
def test_it_measures_pretended_devices(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / "devices.py"), "--stub", "40"]
    command += ["--devices", "cpu:0,cpu:1", *SMALL, *QUICK, "--least", "0", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| over HTTP | ") == 2
    assert set(json.loads(file.read_text())["ratios"]) == {"in process", "over HTTP"}
