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
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_HASHED = "sha256:"
_HASH_LENGTH = 64
# Characters that a key has at least, to be looked for within words.
_HIDEABLE = 8
_WORD = re.compile(r"[^\s'\"`,;:/?&=()<>]+")
_RUNS = (re.compile(r"[A-Za-z0-9_-]+"), re.compile(r"[A-Za-z0-9]+"))


class Keys:
    """The accepted keys. No keys at all: everybody is let in."""

    def __init__(self, given: Iterable[str], file: Path | None) -> None:
        """Raises ValueError if the file cannot be read, is empty, or holds a malformed digest."""
        plain = list(given)
        self._given = [_digest(key) for key in plain]
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._read: list[bytes] = []
        self._complaint = ""
        # Lengths of keys that are known: of plain ones, and of others once they were used.
        self._lengths = _lengths(plain)
        if file is not None:
            self._take_over_file(file)

    def __bool__(self) -> bool:
        return bool(self._given) or self._file is not None

    def allow(self, key: str) -> bool:
        """Whether `key` is one of them; compared in constant time."""
        self._refresh()
        digest = _sha256(key)
        matches = [hmac.compare_digest(digest, known) for known in self._given + self._read]
        if any(matches):
            self._lengths.add(len(key))
            return True
        return False

    def hide(self, text: str, sign: str) -> str:
        """`text` with `sign` in the place of each key, also of one within a longer word.

        A key that was given as a digest and never used has no known length: it is found where it
        is a word or a run of letters, digits, `_` and `-`.
        """
        known = {*self._given, *self._read}
        if not known:
            return text

        def hidden(word: re.Match[str]) -> str:
            return sign if _sha256(word[0]) in known else word[0]

        for length in sorted(self._lengths, reverse=True):
            if _HIDEABLE <= length <= len(text):
                text = _without(text, length, known, sign)
        for words in (_WORD, *_RUNS):
            text = words.sub(hidden, text)
        return text

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
                self._take_over_file(self._file)
                _LOG.info("API keys read again", extra={"keys": len(self._read)})
        except (OSError, ValueError) as error:
            complaint = str(error)
        if complaint and complaint != self._complaint:
            _LOG.error("old API keys stay in force", extra={"reason": complaint})
        self._complaint = complaint

    def _take_over_file(self, file: Path) -> None:
        self._stamp, keys = _read_file(file)
        self._read = [_digest(key) for key in keys]
        self._lengths |= _lengths(keys)


def bearer(headers: Sequence[str]) -> str:
    """The key of a request's Authorization headers, or "": of several none is taken for its own."""
    scheme, _, key = (headers[0] if len(headers) == 1 else "").partition(" ")
    return key.strip(" \t") if scheme.lower() == "bearer" else ""


def listed(keys: SecretStr) -> list[str]:
    """The keys of a setting, with commas between."""
    return [key.strip() for key in keys.get_secret_value().split(",") if key.strip()]


def require_keys(keys: Keys, *reachable: str) -> None:
    """Refuse to open an address beyond this machine to everybody. Raises ValueError."""
    beyond = [each for each in reachable if not is_loopback(each)]
    if keys or not beyond:
        return
    raise ValueError(
        f"{beyond[0]} can be reached from other machines, so an API key is needed: set "
        "VIM_EMBED_API_KEYS or VIM_EMBED_API_KEYS_FILE, or listen on 127.0.0.1 and use a tunnel"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def _read_file(path: Path) -> tuple[tuple[int, int], list[str]]:
    try:
        stamp, lines = _stamp(path), path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of API keys cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the file of API keys {path} holds none: write one a line")
    for key in keys:
        _digest(key)  # whether it can be one
    return stamp, keys


def _stamp(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ino


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _lengths(keys: Iterable[str]) -> set[int]:
    return {len(key) for key in keys if not key.startswith(_HASHED)}


def _without(text: str, length: int, keys: set[bytes], sign: str) -> str:
    """`text` with `sign` in the place of each piece of so many characters that is a key."""
    kept, start = [], 0
    while start <= len(text) - length:
        if _sha256(text[start : start + length]) in keys:
            kept.append(sign)
            start += length
        else:
            kept.append(text[start])
            start += 1
    return "".join(kept) + text[start:]


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
