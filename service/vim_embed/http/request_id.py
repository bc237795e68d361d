"""A request's id: the client's own, where it is plain and holds no secret, or a new one."""

from __future__ import annotations

import re
import secrets

from starlette.types import Scope

from vim_embed.http.auth import Keys
from vim_embed.observability.redaction import without_secrets

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id_of(scope: Scope, keys: Keys) -> str:
    """The id that answers, errors and the log carry."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = str(value.decode("latin-1"))
            if _PLAIN.fullmatch(text) and without_secrets(text, keys) == text:
                return text
    return secrets.token_hex(16)
