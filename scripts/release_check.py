"""Whether a tag may be released: the version of package, image, CITATION.cff and changelog.

    python scripts/release_check.py v1.0.0

The changelog's first section has to be `## 1.0.0 (YYYY-MM-DD)`: one that is unreleased is refused.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What speaks against releasing the tag."""
    version = tag.removeprefix("v")
    found = []
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    if version != project:
        found.append(f"pyproject.toml has version {project}")
    image = re.search(r"^ARG VERSION=(.*)$", (root / "Dockerfile").read_text(), re.MULTILINE)
    if image is None or image[1] != version:
        found.append(f"the Dockerfile has VERSION={image[1] if image else None}")
    cited = re.search(r"^version: *(.*?) *$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    if cited is None or cited[1].strip("'\"") != version:
        found.append(f"CITATION.cff has version {cited[1] if cited else None}")
    section = re.search(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    title = section[1] if section else ""
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d{{2}}-\d{{2}}\)", title):
        found.append(f"the changelog begins with {title!r}, not with '{version} (YYYY-MM-DD)'")
    return found


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    if not re.fullmatch(r"v\d+\.\d+\.\d+(rc\d+)?", given):
        sys.exit(f"{given!r} is no tag of a release: v1.0.0")
    if wrong := problems(given):
        sys.exit(f"{given} is not released: " + "; ".join(wrong))
    print(f"{given} may be released")
