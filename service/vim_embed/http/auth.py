"""API keys: who may use the service.

Keys come from the settings or from a file, one a line, each plain or as `sha256:HEX`; only digests
stay in memory. The file is read again when it changes, so keys rotate without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_HASHED = "sha256:"
_HASH_LENGTH = 64


class Keys:
    """The accepted keys. No keys at all: everybody is let in."""

    def __init__(self, given: Iterable[str], file: Path | None) -> None:
        """Raises ValueError if the file cannot be read, is empty, or holds a malformed digest."""
        self._given = [_digest(key) for key in given]
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._read: list[bytes] = []
        self._complaint = ""
        if file is not None:
            self._stamp, self._read = _read_file(file)

    def __bool__(self) -> bool:
        return bool(self._given) or self._file is not None

    def allow(self, key: str) -> bool:
        """Whether `key` is one of them; compared in constant time."""
        self._refresh()
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._given + self._read]
        return any(matches)

    def reload(self) -> None:
        """Read the file again, changed or not."""
        self._stamp = None
        self._refresh()

    def _refresh(self) -> None:
        """Take over a changed file; a broken one leaves the old keys in force, with a complaint."""
        if self._file is None:
            return
        complaint = ""
        try:
            if _stamp(self._file) != self._stamp:
                self._stamp, self._read = _read_file(self._file)
                _LOG.info("API keys read again", extra={"keys": len(self._read)})
        except (OSError, ValueError) as error:
            complaint = str(error)
        if complaint and complaint != self._complaint:
            _LOG.error("old API keys stay in force", extra={"reason": complaint})
        self._complaint = complaint


def bearer(header: str) -> str:
    """The key of an Authorization header, or ""."""
    scheme, _, key = header.partition(" ")
    return key.strip(" \t") if scheme.lower() == "bearer" else ""


def listed(keys: SecretStr) -> list[str]:
    """The keys of a setting, with commas between."""
    return [key.strip() for key in keys.get_secret_value().split(",") if key.strip()]


def require_keys(keys: Keys, reachable: str) -> None:
    """Refuse to open an address beyond this machine to everybody. Raises ValueError."""
    if keys or is_loopback(reachable):
        return
    raise ValueError(
        f"{reachable} can be reached from other machines, so an API key is needed: set "
        "VIM_EMBED_API_KEYS or VIM_EMBED_API_KEYS_FILE, or listen on 127.0.0.1 and use a tunnel"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def _read_file(path: Path) -> tuple[tuple[int, int], list[bytes]]:
    try:
        stamp, lines = _stamp(path), path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of API keys cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the file of API keys {path} holds none: write one a line")
    return stamp, [_digest(key) for key in keys]


def _stamp(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ino


def _digest(key: str) -> bytes:
    if not key.isascii():
        raise ValueError("an API key has other characters than ASCII: headers cannot carry them")
    if not key.startswith(_HASHED):
        return hashlib.sha256(key.encode()).digest()
    text = key.removeprefix(_HASHED)
    with suppress(ValueError):
        if len(text) == _HASH_LENGTH:
            return bytes.fromhex(text)
    raise ValueError("an API key that begins with sha256: needs 64 hexadecimal digits after it")


def accepted_keys(settings: Settings) -> Keys:
    """The API keys of the settings, admins' included. Raises ValueError that names the fix."""
    file = Path(settings.api_keys_file) if settings.api_keys_file else None
    given = [*listed(settings.api_keys), *listed(settings.admin_keys)]
    return Keys(given, file)
