"""What must not be shown: API keys and tokens in texts of logs and pages."""

from __future__ import annotations

import re
from typing import Protocol

_MESSAGE_LENGTH = 400
HIDDEN = "[hidden]"
_LONGEST_SECRET = 256  # a secret that the end of a line cuts is hidden too
_SECRETS = (
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user:password of a URL
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),  # a token of the Hub
    re.compile(r"(?<=bearer )\S+", re.IGNORECASE),
    re.compile(r"(?<=key=)[^&\s]+|(?<=token=)[^&\s]+", re.IGNORECASE),
)


class Hides(Protocol):
    """The API keys of this service, which alone knows them."""

    def hide(self, text: str, sign: str) -> str:
        """`text` with `sign` in the place of each key."""


def without_secrets(
    message: str, keys: Hides | None = None, *, length: int = _MESSAGE_LENGTH
) -> str:
    """`message` on one short line, with keys, tokens and passwords hidden."""
    line = " ".join(message.split())[: length + _LONGEST_SECRET]
    for secret in _SECRETS:
        line = secret.sub(HIDDEN, line)
    return (line if keys is None else keys.hide(line, HIDDEN))[:length]
