"""The documentation of every release and of this checkout, as one site with a choice of version.

    python scripts/site_versions.py build/pages

Each tag vX.Y.Z is checked out beside and built into a folder of its name, strictly; `dev` is this
checkout. The theme reads versions.json to offer the versions, and the site's own address leads to
the newest release. Nothing is kept between two runs: the tags are the archive.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEV = "dev"
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_REDIRECT = '<!doctype html><meta http-equiv="refresh" content="0; url={0}/"><a href="{0}/">{0}</a>'


def releases(tags: list[str]) -> list[str]:
    """The versions among tags, the newest first; candidates and other tags are none."""
    found = [match for match in map(_RELEASE.fullmatch, tags) if match]
    found.sort(key=lambda match: tuple(int(part) for part in match.groups()), reverse=True)
    return [match[0].removeprefix("v") for match in found]


def listed(versions: list[str]) -> list[dict[str, object]]:
    """versions.json, as the theme reads it: `dev`, then the releases, the newest as `latest`."""
    entries: list[dict[str, object]] = [{"version": DEV, "title": DEV, "aliases": []}]
    for number, version in enumerate(versions):
        aliases = ["latest"] if number == 0 else []
        entries.append({"version": version, "title": version, "aliases": aliases})
    return entries


def build(checkout: Path, target: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(target)]
    subprocess.run(command, cwd=checkout, check=True)


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    pages = Path(sys.argv[1]).resolve()
    shutil.rmtree(pages, ignore_errors=True)
    versions = releases(git("tag", "--list").split())
    build(ROOT, pages / DEV)
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            checkout = Path(folder) / "checkout"
            git("worktree", "add", "--detach", str(checkout), f"v{version}")
            try:
                build(checkout, pages / version)
            finally:
                git("worktree", "remove", "--force", str(checkout))
    (pages / "versions.json").write_text(json.dumps(listed(versions), indent=2) + "\n")
    newest = versions[0] if versions else DEV
    (pages / "index.html").write_text(_REDIRECT.format(newest) + "\n")
    print(f"{pages}: {', '.join([DEV, *versions])}")


if __name__ == "__main__":
    main()
