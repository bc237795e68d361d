"""The error tree against docs/http.md and against httpx."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import httpx
import pytest

import vim_embed_client
from vim_embed_client import (
    ConfigurationError,
    InvalidInputError,
    ServerUnreachableError,
    StatusError,
    UnexpectedStatusError,
    VimEmbedError,
    errors,
)
from vim_embed_client.errors import BY_CODE, FROM_HTTPX, error_from_httpx, error_from_response

DOCS = Path(__file__).parents[2] / "docs" / "http.md"

# Raised by httpx only for uses of it that the client does not make.
NOT_RAISED_BY_SENDING = {
    httpx.HTTPStatusError,
    httpx.CookieConflict,
    httpx.StreamConsumed,
    httpx.StreamClosed,
    httpx.ResponseNotRead,
    httpx.RequestNotRead,
}


def _table() -> list[tuple[int, str, bool]]:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| (yes|no) \|", DOCS.read_text(), re.M)
    return [(int(status), code, retry == "yes") for status, code, retry in rows]


def _descendants(cls: type[BaseException]) -> list[type[BaseException]]:
    return [cls, *(d for child in cls.__subclasses__() for d in _descendants(child))]


def test_every_code_of_the_docs_has_its_exception() -> None:
    ours = [(cls.status, cls.code, cls.retryable) for cls in BY_CODE.values()]
    assert _table()
    assert sorted(ours) == sorted(_table())


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"(\w+Error)\b", errors.__doc__ or "")[1:]
    defined = [cls.__name__ for cls in _descendants(VimEmbedError)]
    assert sorted(drawn) == sorted(defined)


def test_every_error_is_exported() -> None:
    for cls in _descendants(VimEmbedError):
        assert getattr(vim_embed_client, cls.__name__) is cls
        assert cls.__name__ in vim_embed_client.__all__


@pytest.mark.parametrize(("status", "code", "retry"), _table())
def test_an_answer_becomes_its_exception(status: int, code: str, retry: bool) -> None:
    body = {"code": code, "message": "why", "request_id": "abc", "detail": {"row": 3}}
    error = error_from_response(httpx.Response(status, json={"error": body}))
    assert type(error) is BY_CODE[code]
    assert (error.status_code, error.code, error.retryable) == (status, code, retry)
    assert (error.message, error.request_id, error.detail) == ("why", "abc", {"row": 3})
    assert str(error) == f"why (HTTP {status} {code}, request abc)"


@pytest.mark.parametrize(
    ("status", "retry"), [(401, False), (418, False), (429, True), (502, True), (504, False)]
)
@pytest.mark.parametrize("text", ["<h1>no</h1>", '{"error": "text"}', "[]", '{"error": {}}', ""])
def test_foreign_answers_keep_their_status(status: int, retry: bool, text: str) -> None:
    request = httpx.Request("GET", "http://proxy/embed")
    error = error_from_response(httpx.Response(status, text=text, request=request))
    assert type(error) is UnexpectedStatusError
    assert (error.status_code, error.retryable) == (status, retry)
    assert ("API key" if status == 401 else "http://proxy/embed") in str(error)


def test_a_code_unknown_here_is_kept() -> None:
    error = error_from_response(
        httpx.Response(402, json={"error": {"code": "pay_first", "message": "coins"}})
    )
    assert isinstance(error, UnexpectedStatusError)
    assert str(error) == "coins (HTTP 402 pay_first)"


def test_success_is_no_error() -> None:
    assert error_from_response(httpx.Response(200)) is None


def test_every_exception_of_httpx_is_translated() -> None:
    exported = [getattr(httpx, name) for name in httpx.__all__]
    raised = {cls for cls in exported if isinstance(cls, type) and issubclass(cls, Exception)}
    concrete = {cls for cls in raised if not any(issubclass(o, cls) for o in raised - {cls})}
    assert concrete - NOT_RAISED_BY_SENDING == set(FROM_HTTPX)


@pytest.mark.parametrize("cls", FROM_HTTPX)
def test_translations_name_the_url(cls: type[Exception]) -> None:
    error = error_from_httpx(cls("boom"), url="http://host:1", request_id="r")
    assert "http://host:1" in str(error)
    assert error.request_id == "r"


def test_a_subclass_is_translated_like_its_base() -> None:
    class Special(httpx.ConnectError):
        pass

    error = error_from_httpx(Special("refused"), url="http://host:1")
    assert type(error) is ServerUnreachableError


def test_errors_survive_pickling() -> None:
    error: StatusError = InvalidInputError("bad", status_code=422, request_id="r", detail={"a": 1})
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.detail) == (str(error), error.detail)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://[::1"])
def test_an_unusable_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        vim_embed_client.Client(url)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"in_flight": 0},
        {"rows_per_request": 0},
        {"rows_per_request": 1.5},
        {"backoff": -1},
        {"deadline": 0},
    ],
)
def test_unusable_options_are_refused_at_once(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        vim_embed_client.Client(**options)  # type: ignore[arg-type]


def test_the_api_key_is_not_shown() -> None:
    with vim_embed_client.Client(api_key="secret-key") as client:
        assert "secret-key" not in repr(client) + repr(vars(client))
