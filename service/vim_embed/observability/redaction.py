"""What must not be shown: API keys and tokens in texts of logs and pages."""

from __future__ import annotations

import re
from collections.abc import Callable

_MESSAGE_LENGTH = 400
_HIDDEN = "[hidden]"
_SECRETS = (
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user:password of a URL
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),  # a token of the Hub
    re.compile(r"(?<=bearer )\S+", re.IGNORECASE),
    re.compile(r"(?<=key=)[^&\s]+|(?<=token=)[^&\s]+", re.IGNORECASE),
)
_WORD = re.compile(r"[^\s'\"`,;:/?&=()<>]+")


def without_secrets(
    message: str, is_key: Callable[[str], bool], *, length: int = _MESSAGE_LENGTH
) -> str:
    """`message` on one short line, with keys, tokens and passwords hidden.

    is_key: whether a word is an API key of this service.
    """
    line = " ".join(message.split())[:length]
    for secret in _SECRETS:
        line = secret.sub(_HIDDEN, line)
    return _WORD.sub(lambda word: _HIDDEN if is_key(word[0]) else word[0], line)
