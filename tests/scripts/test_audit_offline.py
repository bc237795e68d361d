"""Advisories on disk: which pinned versions they affect, by OSV's own rule."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import audit_offline
import pytest


def advisory(name: str, **affected: Any) -> dict[str, Any]:
    """An OSV record of one package, modified on the first of January 2026."""
    package = {"ecosystem": affected.pop("ecosystem", "PyPI"), "name": name}
    return {
        "id": "PYSEC-2026-1",
        "modified": "2026-01-01T00:00:00Z",
        "affected": [{"package": package, **affected}],
    }


def between(*events: tuple[str, str]) -> dict[str, Any]:
    return {"ranges": [{"type": "ECOSYSTEM", "events": [{kind: at} for kind, at in events]}]}


SINCE = between(("introduced", "0"), ("fixed", "2.0"))
AGAIN = between(("introduced", "3.0"), ("fixed", "1.5"), ("introduced", "1.0"), ("fixed", "3.2"))
LAST = between(("introduced", "1.0"), ("last_affected", "1.4"))


@pytest.mark.parametrize(
    ("version", "affected", "expected"),
    [
        ("1.9", SINCE, True),
        ("2.0", SINCE, False),
        ("2.0rc1", SINCE, True),
        ("0.9", AGAIN, False),
        ("1.2", AGAIN, True),
        ("2.0", AGAIN, False),
        ("3.1.5", AGAIN, True),
        ("3.2", AGAIN, False),
        ("1.4", LAST, True),
        ("1.4.post1", LAST, False),
        ("1.0", {"versions": ["0.9", "1.0.0"]}, True),
        ("1.1", {"versions": ["0.9", "1.0.0", "2004d"]}, False),
        ("1.1", {"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
    ],
)
def test_a_version_is_affected_or_not(
    version: str, affected: dict[str, Any], expected: bool
) -> None:
    assert audit_offline.is_affected(version, affected) is expected


def test_other_ecosystems_and_withdrawn_advisories_do_not_count() -> None:
    pins = {"foo-bar": "1.0"}
    assert [str(f) for f in audit_offline.faults(pins, [advisory("Foo_Bar", **SINCE)])] == [
        "foo-bar 1.0: PYSEC-2026-1, fixed in 2.0"
    ]
    withdrawn = advisory("foo-bar", **SINCE) | {"withdrawn": "2026-02-01T00:00:00Z"}
    elsewhere = advisory("foo-bar", ecosystem="npm", **SINCE)
    assert audit_offline.faults(pins, [withdrawn, elsewhere, advisory("foo", **SINCE)]) == []


def test_every_line_of_our_constraints_is_a_pin() -> None:
    pins = audit_offline.pinned((audit_offline.ROOT / "constraints.txt").read_text())
    assert {"torch", "numpy", "fastapi", "pillow"} <= set(pins)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_the_command_names_what_is_affected(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# pins\nfoo==1.0 ; python_version > '3'\nbar==2\n")
    text = json.dumps(advisory("foo", **SINCE))
    database = tmp_path / ("all.zip" if packed else "all")
    if packed:
        with zipfile.ZipFile(database, "w") as archive:
            archive.writestr("PYSEC-2026-1.json", text)
    else:
        database.mkdir()
        (database / "PYSEC-2026-1.json").write_text(text)
    command = ["audit_offline.py", str(database), "--constraints", str(constraints)]
    monkeypatch.setattr("sys.argv", command)
    assert audit_offline.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 pinned packages, 1 advisories, the newest of 2026-01-01",
        "foo 1.0: PYSEC-2026-1, fixed in 2.0",
        "1 known faults",
    ]
    constraints.write_text("foo==2.0\n")
    assert audit_offline.main() == 0
    assert capsys.readouterr().out.endswith("No known fault.\n")


@pytest.mark.parametrize(
    ("record", "pins", "told"),
    [
        (None, "foo==1", "holds no .json file"),
        ("{", "foo==1", "is no JSON"),
        ("{}", "foo==1", "no advisory in the OSV format"),
        (json.dumps(advisory("foo", **between(("introduced", "x y")))), "foo==1", "PYSEC-2026-1"),
        (json.dumps(advisory("foo", **SINCE)), "foo>=1", "not a pinned version: 'foo>=1'"),
    ],
)
def test_what_cannot_be_read_is_no_clean_bill(
    record: str | None, pins: str, told: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "constraints.txt").write_text(pins)
    if record is not None:
        (tmp_path / "a.json").write_text(record)
    monkeypatch.setattr(
        "sys.argv", ["a", str(tmp_path), "--constraints", str(tmp_path / "constraints.txt")]
    )
    assert audit_offline.main() == 2
    assert told in capsys.readouterr().err
