"""Known faults of the pinned packages, from advisories on disk: for machines without a network.

    python scripts/audit_offline.py DATABASE

DATABASE: advisories in the OSV format (https://ossf.github.io/osv-schema/), a folder of .json files
or a .zip of them, such as the dump of OSV's PyPI ecosystem. Exit code 1 where a pinned version is
affected, 2 where the database or a pin cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An advisory that a pinned version falls under."""

    package: str
    version: str
    id: str
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        cure = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fixed version is known"
        return f"{self.package} {self.version}: {self.id}, {cure}"


def pinned(constraints: str) -> dict[str, str]:
    """Versions by canonical name. Raises ValueError for a line that pins none."""
    found: dict[str, str] = {}
    for line in constraints.splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
            if specifier.operator != "==":
                raise ValueError
            found[canonicalize_name(requirement.name)] = str(Version(specifier.version))
        except (InvalidRequirement, InvalidVersion, ValueError):
            raise ValueError(f"not a pinned version: {line!r}") from None
    return found


def advisories(database: Path) -> Iterator[dict[str, Any]]:
    """Every record of the database. Raises ValueError where it has none, OSError, BadZipFile."""
    count = 0
    for name, text in _records(database):
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{name} is no JSON: {error}") from None
        if not isinstance(record, dict) or "affected" not in record:
            raise ValueError(f"{name} is no advisory in the OSV format")
        count += 1
        yield record
    if not count:
        raise ValueError(f"{database} holds no .json file")


def _records(database: Path) -> Iterator[tuple[str, bytes]]:
    if database.is_dir():
        for path in sorted(database.rglob("*.json")):
            yield str(path), path.read_bytes()
        return
    with zipfile.ZipFile(database) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json"):
                yield name, archive.read(name)


def faults(pins: dict[str, str], records: Iterable[dict[str, Any]]) -> list[Fault]:
    """The advisories that are not withdrawn and affect a pinned version."""
    found: dict[tuple[str, str], Fault] = {}
    for record in records:
        if record.get("withdrawn"):
            continue
        for affected in record["affected"]:
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") != "PyPI" or name not in pins:
                continue
            try:
                inside = is_affected(pins[name], affected)
            except InvalidVersion as error:
                raise ValueError(f"{record['id']}: {error}") from None
            if inside:
                fixed = tuple(sorted({e["fixed"] for e in _events(affected) if "fixed" in e}))
                fault = Fault(package=name, version=pins[name], id=record["id"], fixed=fixed)
                found[name, record["id"]] = fault
    return [found[key] for key in sorted(found)]


def is_affected(version: str, affected: dict[str, Any]) -> bool:
    """OSV's rule: listed by name, or behind the last event of a range that is not behind it."""
    wanted = Version(version)
    for listed in affected.get("versions", ()):
        try:
            if Version(listed) == wanted:
                return True
        except InvalidVersion:
            continue  # a name from before PEP 440 is no version that a pin can have
    return any(_in_range(wanted, each) for each in affected.get("ranges", ()))


def _in_range(wanted: Version, each: dict[str, Any]) -> bool:
    if each.get("type") != "ECOSYSTEM":
        return False  # commits of a repository
    inside = False
    for event in sorted(each["events"], key=_place):
        (kind, text), *_ = event.items()
        place = Version("0.dev0") if text == "0" else Version(text)
        if kind == "introduced" and wanted >= place:
            inside = True
        elif (kind == "fixed" and wanted >= place) or (kind == "last_affected" and wanted > place):
            inside = False
    return inside


def _place(event: dict[str, str]) -> Version:
    (text,) = event.values()
    return Version("0.dev0") if text == "0" else Version(text)


def _events(affected: dict[str, Any]) -> Iterator[dict[str, str]]:
    for each in affected.get("ranges", ()):
        if each.get("type") == "ECOSYSTEM":
            yield from each["events"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("database", type=Path, help="a folder or .zip of OSV advisories")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    asked = parser.parse_args()
    try:
        pins = pinned(asked.constraints.read_text())
        records = list(advisories(asked.database))
        found = faults(pins, records)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"Error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    newest = max(str(record.get("modified", "")) for record in records)
    print(f"{len(pins)} pinned packages, {len(records):,} advisories, the newest of {newest[:10]}")
    for fault in found:
        print(fault)
    print(f"{len(found)} known faults" if found else "No known fault.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
