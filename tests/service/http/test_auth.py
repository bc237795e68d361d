"""API keys: who is let in, over a real server."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi import FastAPI

from support.serving import running
from vim_embed.cli import main
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.auth import Keys, accepted_keys, is_loopback, require_keys
from vim_embed.settings import Settings
from vim_embed_client import Client
from vim_embed_client.errors import UnauthorizedError


@contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    with running(app, wait=False) as url:
        while httpx.get(f"{url}/health/ready").status_code != 200:
            time.sleep(0.02)
        yield url


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_only_a_known_key_is_let_in() -> None:
    digest = hashlib.sha256(b"second").hexdigest()
    settings = Settings(api_keys=f"first, sha256:{digest}")
    with serve_app(create_app(settings, ArithmeticEngine())) as url, httpx.Client() as http:
        for path in ("/models", "/metrics", "/docs", "/openapi.json", "/no-such-route"):
            for headers in (
                {},
                bearer("third"),
                {"Authorization": "Bearer"},
                {"Authorization": "Basic first"},
            ):
                answer = http.get(url + path, headers=headers)
                assert answer.status_code == 401
                error = answer.json()["error"]
                assert error["code"] == "unauthorized"
                assert "Authorization: Bearer" in error["message"]
                assert error["request_id"] == answer.headers["x-request-id"]
                assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("first", "second"):
            assert http.get(url + "/models", headers=bearer(key)).status_code == 200
        assert http.get(url + "/models", headers=bearer(f"sha256:{digest}")).status_code == 401
        assert http.get(url + "/health/live").status_code == 200
        assert http.get(url + "/health/ready").status_code == 200


def test_a_large_body_without_a_key_is_refused_at_once() -> None:
    settings = Settings(api_keys="first")
    with serve_app(create_app(settings, ArithmeticEngine())) as url:
        answer = httpx.post(url + "/embed", content=bytes(1000))
        assert answer.status_code == 401
        with Client(url, api_key="first") as client:
            pixels = np.zeros((1, 3, 224, 224), np.uint8)
            assert client.embed(pixels).embeddings.shape[0] == 1
        with (
            Client(url, api_key="wrong") as client,
            pytest.raises(UnauthorizedError, match="VIM_EMBED_API_KEY"),
        ):
            client.models()


def test_keys_rotate_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nold\n")
    keys = Keys([], file)
    assert keys.allow("old")
    file.write_text("new\n")
    os.utime(file, ns=(1, 1))
    assert keys.allow("new")
    assert not keys.allow("old")
    file.write_text("\n")  # a broken file leaves the last good keys in force
    os.utime(file, ns=(2, 2))
    assert keys.allow("new")
    file.unlink()
    assert keys.allow("new")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot be read"), ("", "one a line"), ("sha256:12\n", "64 hexadecimal")],
)
def test_a_bad_file_of_keys(tmp_path: Path, content: str | None, complaint: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        accepted_keys(Settings(api_keys_file=str(file)))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "127.3.2.1"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    require_keys(Keys([], None), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gpu-box"])
def test_elsewhere_needs_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="VIM_EMBED_API_KEYS"):
        require_keys(Keys([], None), host)
    require_keys(Keys(["key"], None), host)


def test_the_server_does_not_start_open_to_everybody() -> None:
    result = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--random-weights"])
    assert result.exit_code == 2
    assert "VIM_EMBED_API_KEYS" in result.output


def test_keys_are_not_shown() -> None:
    settings = Settings(api_keys="very-secret")
    assert "very-secret" not in f"{settings!r} {settings}"
