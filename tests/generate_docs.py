"""Writes the parts of the documentation that come from the code: `make docs`.

The tests compare; this script writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from vim_embed.app import create_app
from vim_embed.engine import ArithmeticEngine
from vim_embed.errors import ERRORS
from vim_embed.settings import Settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OPENAPI = ROOT / "docs" / "openapi.json"
_SETTINGS = re.compile(r"(<!-- settings: begin -->\n).*?(<!-- settings: end -->)", re.DOTALL)


def settings_table() -> str:
    """The README's table: flag, environment variable, default, meaning."""
    lines = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "--model" if name == "models" else "--" + name.replace("_", "-")
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default).lower()
        meaning = f"{field.description}"
        lines.append(f"| `{flag}` | `VIM_EMBED_{name.upper()}` | `{shown}` | {meaning} |")
    return "\n".join(lines) + "\n"


def readme_with_settings(text: str) -> str:
    """`text` with the settings table of the code."""
    return _SETTINGS.sub(lambda match: match[1] + settings_table() + match[2], text)


def openapi_text() -> str:
    """The OpenAPI document of the service, as committed."""
    document = create_app(Settings(), ArithmeticEngine()).openapi()
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def error_rows() -> list[tuple[str, str, str]]:
    """(status, code, retry) of every error, as docs/http.md writes them."""
    return [(str(e.status), f"`{e.code}`", "yes" if e.retryable else "no") for e in ERRORS]


def main() -> None:
    README.write_text(readme_with_settings(README.read_text()))
    OPENAPI.write_text(openapi_text())


if __name__ == "__main__":
    main()
