"""The sizing page: from the measured figures, and in agreement with a simulation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("sizing", ROOT / "benchmarks" / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = module
    spec.loader.exec_module(module)
    return module


sizing = _load()
RATES = sizing.measured((ROOT / "docs" / "measurements" / "h100.md").read_text())
TINY, BASE = (sizing.best_rate(RATES[name]) for name in ("tiny", "base"))


def test_the_page_is_what_the_script_writes() -> None:
    text = sizing.page(sizing.Machine(0.0), sizing.Shared())
    assert (ROOT / "docs" / "sizing.md").read_text() == text, "run `make sizing`"


def test_rates_are_read_from_the_measurements() -> None:
    table = (ROOT / "docs" / "measurements" / "h100.md").read_text()
    assert f"| tiny | 256 | {RATES['tiny'][256]:.0f} |" in table
    for rates in RATES.values():
        assert {32, 128, 256} <= set(rates)


def machine(name: str, **others: Any) -> Any:
    return sizing.Machine(sizing.best_rate(RATES[name]), **others)


# One for each stage that can be the narrowest, and mixes of machines.
CASES = [
    ("GPU", "base", 1, {"nic": 100.0}, {}),
    ("GPU", "small", 3, {"nic": 100.0, "gpus": 2}, {"archive": 1000.0}),
    ("network card", "tiny", 1, {"nic": 10.0}, {}),
    ("network card", "tiny", 4, {"nic": 25.0}, {}),
    ("HTTP", "tiny", 1, {"nic": 100.0, "http_processes": 1}, {}),
    ("archive", "base", 6, {}, {"archive": 25.0}),
    ("GPU", "tiny", 2, {"nic": 100.0, "http_processes": 0}, {}),
    ("Ray's ingress", "tiny", 2, {"nic": 100.0, "http_processes": 0, "ingresses": 4}, {}),
]


@pytest.mark.parametrize(("stage", "name", "machines", "of_machine", "of_shared"), CASES)
def test_the_formula_agrees_with_the_simulation(
    stage: str, name: str, machines: int, of_machine: dict[str, Any], of_shared: dict[str, Any]
) -> None:
    pytest.importorskip("simpy")
    one, shared = machine(name, **of_machine), sizing.Shared(**of_shared)
    capacities = sizing.stages(one, machines, shared)
    assert min(capacities, key=capacities.get) == stage
    found = sizing.simulate(RATES[name], one, machines, shared, sizing.Traffic())
    assert found == pytest.approx(capacities[stage], rel=0.05)


def test_the_simulation_finds_what_the_formula_leaves_out() -> None:
    """One request at a time keeps nothing busy: it must come out far below the narrowest stage."""
    pytest.importorskip("simpy")
    one = machine("tiny")
    traffic = sizing.Traffic(requests=500, in_flight=1)
    found = sizing.simulate(RATES["tiny"], one, 1, sizing.Shared(), traffic)
    assert found < 0.6 * min(sizing.stages(one, 1, sizing.Shared()).values())


def test_a_plan_is_the_smallest_that_is_in_time() -> None:
    rows, hours, one, shared = 4_000_000_000, 24.0, machine("base"), sizing.Shared()
    found = sizing.plan(rows, hours, one, shared)
    assert found.machines == -(-rows // int(BASE * (24 * 3600 - one.start)))
    assert found.seconds <= 24 * 3600
    assert found.cost == pytest.approx(found.machines * one.price * found.seconds / 3600)


def test_where_machines_do_not_help_it_says_what_bounds() -> None:
    found = sizing.plan(4_000_000_000, 1.0, machine("tiny"), sizing.Shared(archive=10.0))
    assert found.bottleneck == "archive"
    assert found.seconds > 3600
    assert found.machines == 1


def test_a_small_catalogue_is_bound_by_starting_up() -> None:
    assert sizing.plan(100_000, 1.0, machine("tiny"), sizing.Shared()).bottleneck == "start-up"
