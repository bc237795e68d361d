"""HTTPS by settings: the certificate and its key, checked before anything listens."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from vim_embed.settings import Settings


def tls_options(settings: Settings) -> dict[str, Any]:
    """uvicorn's options for HTTPS; none without a certificate. Raises ValueError with the fix."""
    if not settings.tls_cert:
        if settings.tls_key or settings.tls_key_password_file:
            raise ValueError("--tls-key without --tls-cert: give the certificate's file too")
        return {}
    if not settings.tls_key:
        raise ValueError("--tls-cert without --tls-key: give the file of the private key too")
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
    return {
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
        "ssl_keyfile_password": _password(settings) or None,
    }


def load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Put the settings' certificate into `context`, for connections from now on.

    Raises ValueError with the fix.
    """
    for flag, path in (("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key)):
        _read(flag, path)
    password = _password(settings)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: password)
    except ssl.SSLError as error:
        raise ValueError(_explained(error, settings)) from error


def _explained(error: ssl.SSLError, settings: Settings) -> str:
    files = f"{settings.tls_cert} and {settings.tls_key}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{files} do not belong together: the private key is another certificate's"
    key = Path(settings.tls_key).read_text(errors="replace")
    if "ENCRYPTED" in key:
        given = "does not open it" if settings.tls_key_password_file else "is needed"
        return f"{settings.tls_key} is encrypted, and --tls-key-password-file {given}"
    return (
        f"{files} are no certificate chain and private key in PEM form "
        f"({error.reason or 'unreadable'})"
    )


def _password(settings: Settings) -> str:
    if not settings.tls_key_password_file:
        return ""
    return _read("--tls-key-password-file", settings.tls_key_password_file).strip("\r\n")


def _read(flag: str, path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be read: {error.strerror or error}") from error
