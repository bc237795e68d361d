"""API keys: how they are compared and read, and that they turn up nowhere."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from security.processes import ServerProcess, server_process
from security.raw_http import connect, error, head, status, until_closed
from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.auth import Keys
from vim_embed.observability.redaction import without_secrets
from vim_embed.settings import Settings
from vim_embed_client import Client, ConfigurationError, UnauthorizedError

KEY = "kq7Zx0-a-long-and-secret-key"
ADMIN = "adm1n-an0ther-secret-key"
WRONG = "wr0ng-but-still-n0body-elses-business"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("keys")
    file = folder / "keys"
    file.write_text(f"{KEY}\n")
    flags = ["--api-keys-file", str(file), "--admin-keys", ADMIN, "--model-control"]
    with server_process(folder, *flags, "--log-level", "debug") as started:
        yield started


def _asked(started: ServerProcess, *lines: bytes) -> bytes:
    with connect(started.url) as connection:
        top = [b"GET /models HTTP/1.1", b"Host: localhost", b"Connection: close", *lines]
        connection.sendall(b"\r\n".join([*top, b"", b""]))
        return until_closed(connection)


GOOD = b"Authorization: Bearer " + KEY.encode()
BAD = b"Authorization: Bearer " + WRONG.encode()


@pytest.mark.parametrize(
    ("expected", "lines"),
    [
        (200, [GOOD]),
        (200, [b"AUTHORIZATION: bearer   " + KEY.encode() + b"  "]),
        (401, [GOOD, BAD]),  # which one a proxy has looked at, nobody knows
        (401, [BAD, GOOD]),
        (401, [GOOD, GOOD]),
        (401, [b"Authorization: " + KEY.encode()]),
        (401, [b"Authorization: Bearer" + KEY.encode()]),
        (401, [b"Authorization: Bearer " + KEY.encode()[:-1]]),
        (401, [b"Authorization: Bearer " + KEY.encode() + b"x"]),
        (401, [b"Authorization: Bearer " + KEY.upper().encode()]),
        (401, [b"Authorization: Bearer \xff\xfe\xe9"]),
        (401, ["Authorization: Bearer schlüssel".encode()]),
        (401, [b"Authorization: Bearer " + b"x" * 30_000]),
        (401, [b"Authorization:"]),
        (401, [b"X-Api-Key: " + KEY.encode()]),
        (401, [b"X-Original-URL: /health/live", b"X-Forwarded-For: 127.0.0.1"]),
    ],
)
def test_what_counts_as_the_key(started: ServerProcess, expected: int, lines: list[bytes]) -> None:
    answer = _asked(started, *lines)
    assert status(answer) == expected
    if expected == 401:
        assert error(answer)["code"] == "unauthorized"


@pytest.mark.parametrize(
    "path", ["//models", "/models/", "/health/live/../models", "/health/live;x", "/HEALTH/live"]
)
def test_no_way_around_by_the_path(started: ServerProcess, path: str) -> None:
    with connect(started.url) as connection:
        connection.sendall(head("GET", path))
        assert status(until_closed(connection)) == 401


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys = Keys(["a", "b", "c"], None)
    for key in ("a", "c", "none of them", ""):
        compared.clear()
        keys.allow(key)
        assert compared == [(32, 32)] * 3  # digests, so no length of a key shows either


def test_keys_beyond_ascii_are_refused_by_name_of_the_reason() -> None:
    with pytest.raises(ValueError, match="ASCII"):
        Keys(["schlüssel"], None)
    with pytest.raises(ConfigurationError, match="ASCII"):
        Client("http://127.0.0.1:1", api_key="schlüssel")


def test_admin_keys_are_kept_apart(started: ServerProcess) -> None:
    for key, expected in ((KEY, 403), (ADMIN, 200)):
        answer = httpx.post(
            f"{started.url}/models/arithmetic/pin", headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == expected


def test_keys_turn_up_nowhere(started: ServerProcess) -> None:
    """Neither right nor wrong ones, wherever a caller may have put them."""
    texts = []
    with httpx.Client(base_url=started.url) as http:
        for key in (KEY, WRONG):
            for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"Basic {key}"}):
                for path in ("/models", "/embed", "/nowhere", "/v2/models"):
                    texts.append(http.get(path, headers=headers).text)
        own = {"Authorization": f"Bearer {KEY}"}
        http.get(f"/models/{KEY}", headers=own)
        http.post(f"/embed?model={KEY}", content=npy(np.zeros((1, 3, 8, 8))), headers=NPY | own)
        http.get(f"/{KEY}?key={KEY}", headers=own)
        texts += [http.get(path, headers=own).text for path in ("/metrics", "/status", "/models")]
    texts.append(started.log.read_text())
    assert "unauthorized" in texts[-1]
    for text in texts:
        for key in (KEY, ADMIN, WRONG):
            assert key not in text


def test_failed_attempts_are_logged_with_their_address_and_counted(started: ServerProcess) -> None:
    own = {"Authorization": f"Bearer {KEY}"}

    def counted() -> float:
        text = httpx.get(f"{started.url}/metrics", headers=own).text
        line = next(x for x in text.splitlines() if "refusals_total" in x and "unauthorized" in x)
        return float(line.split()[-1])

    before = counted()
    httpx.get(f"{started.url}/models", headers={"Authorization": f"Bearer {WRONG}"})
    assert counted() == before + 1
    lines = [json.loads(line) for line in started.log.read_text().splitlines()]
    refused = [line for line in lines if line.get("code") == "unauthorized"]
    assert refused
    assert {line["client"] for line in refused} == {"127.0.0.1"}


def test_a_broken_file_of_keys_is_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = Keys([], file)
    file.write_text("sha256:broken\n")
    with caplog.at_level(logging.INFO, "vim_embed.http.auth"):
        assert all(keys.allow("old") for _ in range(3))
        assert [r.message for r in caplog.records] == ["old API keys stay in force"]
        file.write_text("new key of another length\n")
        assert keys.allow("new key of another length")
        assert not keys.allow("old")


INNER = ["a.{}", "x{}x", "{}{}", "id-{}-id", "{}.png", "%2F{}", "~{}~"]


@pytest.mark.parametrize("given", ["plain", "hashed and used", "hashed and never used"])
def test_keys_within_longer_words_are_hidden(given: str) -> None:
    hashed = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    keys = Keys([KEY if given == "plain" else hashed], None)
    if given == "hashed and used":
        assert keys.allow(KEY)
    for form in INNER:
        word = form.replace("{}", KEY)
        shown = keys.hide(f"no route /{word}: see /docs", "[hidden]")
        if given != "hashed and never used" or form in ("a.{}", "{}.png", "~{}~"):
            assert KEY not in shown, form
            assert "[hidden]" in shown
    assert keys.hide("GET /embed and other words", "[hidden]") == "GET /embed and other words"
    cut = without_secrets("x" * 380 + KEY, keys)
    assert KEY[:8] not in cut or given == "hashed and never used"


def test_a_short_key_is_hidden_where_it_is_a_word() -> None:
    keys = Keys(["abc"], None)
    assert keys.hide("abc of abcdef", "[hidden]") == "[hidden] of abcdef"


@pytest.mark.parametrize("form", ["{}", "x{}x", "a.{}"])
def test_a_request_id_that_holds_a_key_is_replaced(started: ServerProcess, form: str) -> None:
    mine = form.replace("{}", KEY)
    for key in (KEY, "no key"):
        headers = {"X-Request-ID": mine, "Authorization": f"Bearer {key}"}
        answer = httpx.get(f"{started.url}/models/{mine}", headers=headers)
        assert KEY not in answer.headers["x-request-id"]
    assert KEY not in started.log.read_text()
    status = httpx.get(f"{started.url}/status", headers={"Authorization": f"Bearer {KEY}"})
    assert KEY not in status.text


def test_the_client_does_not_show_its_key() -> None:
    app = create_app(Settings(api_keys=KEY), ArithmeticEngine())
    with (
        running(app, wait=False) as url,
        Client(url, api_key=WRONG) as client,
        pytest.raises(UnauthorizedError) as caught,
    ):
        client.models()
    assert WRONG not in f"{client!r} {client._options!r} {caught.value!r} {caught.value}"
