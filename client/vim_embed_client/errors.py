"""What can go wrong, as one tree; every exception of the client is a `VimEmbedError`.

VimEmbedError
├── ConfigurationError            an option, URL or key that cannot work
│   └── ResumeError               finished parts of another run are in the way
├── InputError                    pixels or images refused before anything was sent
├── OutputError                   a file cannot be written: a full disk, a folder of others
├── ServiceNotInstalledError      a local server was asked for without the [service] extra
├── LocalServerError              a local server died or did not get ready
├── DeadlineExpiredError          the caller's own `deadline` passed
├── TransportError                no answer arrived
│   ├── ServerUnreachableError    no connection            retry
│   ├── ConnectionLostError       it broke while in use    retry
│   └── TimedOutError             connected, but silent for too long
├── BadAnswerError                an answer that docs/http.md does not allow
│   └── ProvenanceChangedError    chunks of one batch came from different weights or settings
└── StatusError                   the service answered with an error: one class per code
    ├── MalformedRequestError      400
    ├── UnauthorizedError          401
    ├── ForbiddenError             403
    ├── UnknownModelError          404
    ├── NotFoundError              404
    ├── MethodNotAllowedError      405
    ├── NotAcceptableError         406
    ├── RequestTimeoutError        408  retry
    ├── ConflictError              409
    ├── PayloadTooLargeError       413
    ├── UnsupportedMediaTypeError  415
    ├── UnsupportedEncodingError   415
    ├── InvalidInputError          422
    ├── QueueFullError             429  retry, after Retry-After
    ├── HeadTooLargeError          431
    ├── InternalServerError        500  retry
    ├── NotReadyError              503  retry
    ├── WorkerFailedError          503  retry
    ├── TooManyConnectionsError    503  retry, after Retry-After
    ├── DrainingError              503  retry
    ├── DeadlineExceededError      504
    └── UnexpectedStatusError      an answer that is not the service's own, such as a proxy's
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

_NO_RETRY_STATUS = frozenset({501, 504})
_MAX_TEXT = 300


class VimEmbedError(Exception):
    """Base of all errors; the message says what to do.

    request_id: the id under which the service's log knows the request, where there is one.
    """

    retryable: bool = False

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id


class ConfigurationError(VimEmbedError, ValueError):
    """An option, URL or key that cannot work."""


class ResumeError(ConfigurationError):
    """An interrupted run left parts that these inputs, options or weights do not fit."""


class InputError(VimEmbedError, ValueError):
    """Pixels or images refused before anything was sent."""


class OutputError(VimEmbedError):
    """A file cannot be written: the disk is full, or the folder is not ours to write in."""


class ServiceNotInstalledError(VimEmbedError):
    """A local server was asked for, but the packages it needs are not installed."""


class LocalServerError(VimEmbedError):
    """A local server died or did not get ready in time; the message ends with its log."""


class DeadlineExpiredError(VimEmbedError):
    """The `deadline` given to the client passed before the answer was complete."""


class TransportError(VimEmbedError):
    """No answer arrived."""


class ServerUnreachableError(TransportError):
    """No connection could be made."""

    retryable = True


class ConnectionLostError(TransportError):
    """The connection broke before the answer was complete."""

    retryable = True


class TimedOutError(TransportError):
    """The service was connected but silent for longer than `timeout`."""


class BadAnswerError(VimEmbedError):
    """An answer that docs/http.md does not allow: the URL may lead to something else."""


class ProvenanceChangedError(BadAnswerError):
    """chunks of one batch came from different weights or settings: nothing is returned."""


class StatusError(VimEmbedError):
    """The service answered with an error.

    status_code: of the answer. code: a word of the table in docs/http.md. detail: further fields
    of the answer, or None. retry_after: seconds the service asked to wait, or None.
    """

    code: str = ""
    status: ClassVar[int] = 0

    def __init__(
        self,
        message: str,
        *,
        request_id: str | None = None,
        status_code: int | None = None,
        detail: Mapping[str, Any] | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status_code = self.status if status_code is None else status_code
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        facts = [f"HTTP {self.status_code}"]
        if self.code:
            facts[0] += f" {self.code}"
        if self.request_id:
            facts.append(f"request {self.request_id}")
        return f"{self.message} ({', '.join(facts)})"


class MalformedRequestError(StatusError):
    code, status, retryable = "malformed_request", 400, False


class UnauthorizedError(StatusError):
    code, status, retryable = "unauthorized", 401, False


class ForbiddenError(StatusError):
    code, status, retryable = "forbidden", 403, False


class UnknownModelError(StatusError):
    code, status, retryable = "unknown_model", 404, False


class NotFoundError(StatusError):
    code, status, retryable = "not_found", 404, False


class MethodNotAllowedError(StatusError):
    code, status, retryable = "method_not_allowed", 405, False


class NotAcceptableError(StatusError):
    code, status, retryable = "not_acceptable", 406, False


class RequestTimeoutError(StatusError):
    code, status, retryable = "request_timeout", 408, True


class ConflictError(StatusError):
    code, status, retryable = "conflict", 409, False


class PayloadTooLargeError(StatusError):
    code, status, retryable = "payload_too_large", 413, False


class UnsupportedMediaTypeError(StatusError):
    code, status, retryable = "unsupported_media_type", 415, False


class UnsupportedEncodingError(StatusError):
    code, status, retryable = "unsupported_encoding", 415, False


class InvalidInputError(StatusError):
    code, status, retryable = "invalid_input", 422, False


class QueueFullError(StatusError):
    code, status, retryable = "queue_full", 429, True


class HeadTooLargeError(StatusError):
    code, status, retryable = "head_too_large", 431, False


class InternalServerError(StatusError):
    code, status, retryable = "internal_error", 500, True


class NotReadyError(StatusError):
    code, status, retryable = "not_ready", 503, True


class WorkerFailedError(StatusError):
    code, status, retryable = "worker_failed", 503, True


class TooManyConnectionsError(StatusError):
    code, status, retryable = "too_many_connections", 503, True


class DrainingError(StatusError):
    code, status, retryable = "draining", 503, True


class DeadlineExceededError(StatusError):
    code, status, retryable = "deadline_exceeded", 504, False


class UnexpectedStatusError(StatusError):
    """An error that is not in the service's own shape, or whose code is not known here."""

    def __init__(self, message: str, *, code: str = "", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.code = code
        self.retryable = _status_retryable(self.status_code)


BY_CODE: dict[str, type[StatusError]] = {
    cls.code: cls for cls in StatusError.__subclasses__() if cls is not UnexpectedStatusError
}


def _status_retryable(status: int) -> bool:
    return status in (408, 429) or (status >= 500 and status not in _NO_RETRY_STATUS)


def error_from_response(response: httpx.Response, base_url: str = "") -> StatusError | None:
    """The exception for an answer, or None where it is a success (2xx).

    base_url: what the service's URL was thought to be, to say so where it seems to be wrong.
    """
    if response.is_success:
        return None
    body = _error_body(response)
    code = str(body.get("code", ""))
    fields: dict[str, Any] = {
        "status_code": response.status_code,
        "request_id": body.get("request_id") or response.headers.get("x-request-id"),
        "detail": body.get("detail"),
        "retry_after": response.headers.get("retry-after"),
    }
    message = str(body.get("message") or _foreign_message(response)) + _path_hint(
        response, code, base_url
    )
    if code in BY_CODE:
        return BY_CODE[code](message, **fields)
    return UnexpectedStatusError(message, code=code, **fields)


def _error_body(response: httpx.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _foreign_message(response: httpx.Response) -> str:
    """What an answer says that is not in the service's own form."""
    url, status = response.url, response.status_code
    if status in (401, 403):
        return (
            "the service wants an API key: set VIM_EMBED_API_KEY, or pass api_key (--api-key). "
            f"{_NOT_OURS}"
        )
    if response.is_redirect:
        to = response.headers.get("location", "elsewhere")
        return f"{url} sends to {to}: set VIM_EMBED_URL to where the service itself is"
    text = " ".join(response.text.split())[:_MAX_TEXT]
    if "HTTPS port" in text or ("TLS" in text and status == 400):
        return f"{url} speaks https: set VIM_EMBED_URL to {url.copy_with(scheme='https', path='/')}"
    said = f"{url} answered {response.reason_phrase or 'an error'}: {text or 'no text'}"
    return said if status in (408, 429, 502, 503, 504) else f"{said}. {_NOT_OURS}"


_NOT_OURS = (
    "The answer has not the form of a vim-embed service: if another program has this port, check "
    "VIM_EMBED_URL"
)


def _path_hint(response: httpx.Response, code: str, base_url: str) -> str:
    """For a route that is not there: that the service's URL has a path, if it has one."""
    url = httpx.URL(base_url)
    unknown = code in ("", "not_found", "method_not_allowed") and response.status_code in (404, 405)
    if not unknown or url.path in ("", "/"):
        return ""
    return (
        f". The service's URL has the path {url.path}: unless a proxy serves it there, set "
        f"VIM_EMBED_URL to {url.copy_with(path='/')}"
    )


FROM_HTTPX: dict[type[Exception], tuple[type[VimEmbedError], str]] = {
    httpx.ConnectError: (
        ServerUnreachableError,
        "no service at {url} ({reason}). Is it running? Start it with `vim-embed-server serve`, "
        "or set VIM_EMBED_URL to where it is",
    ),
    httpx.ConnectTimeout: (
        ServerUnreachableError,
        "no connection to {url} within the timeout. Is the service running there? "
        "Check VIM_EMBED_URL and the network",
    ),
    httpx.ProxyError: (
        ServerUnreachableError,
        "the proxy does not lead to {url} ({reason}). Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
    ),
    httpx.ReadError: (ConnectionLostError, "the connection to {url} broke ({reason})"),
    httpx.WriteError: (
        ConnectionLostError,
        "{url} closed the connection while the request was being sent ({reason}). "
        "If it happens again, send fewer rows at once (rows_per_request)",
    ),
    httpx.CloseError: (ConnectionLostError, "the connection to {url} broke ({reason})"),
    httpx.RemoteProtocolError: (
        ConnectionLostError,
        "{url} broke off its answer ({reason}). Was the service stopped or restarted?",
    ),
    httpx.ReadTimeout: (
        TimedOutError,
        "no answer from {url} within the timeout. Raise `timeout`, or send fewer rows at once "
        "(rows_per_request)",
    ),
    httpx.WriteTimeout: (
        TimedOutError,
        "{url} did not take the request's body within the timeout. Raise `timeout`, or send "
        "fewer rows at once (rows_per_request)",
    ),
    httpx.PoolTimeout: (TimedOutError, "no free connection to {url} within the timeout"),
    httpx.DecodingError: (BadAnswerError, "the answer of {url} cannot be decoded ({reason})"),
    httpx.TooManyRedirects: (BadAnswerError, "{url} redirects without end"),
    httpx.InvalidURL: (ConfigurationError, "{url} is not a URL ({reason})"),
    httpx.UnsupportedProtocol: (
        ConfigurationError,
        "{url} is not an http:// or https:// URL: check VIM_EMBED_URL",
    ),
    httpx.LocalProtocolError: (
        ConfigurationError,
        "the request to {url} is not valid HTTP ({reason}): check the API key and the URL",
    ),
}
"""Every exception that sending a request with httpx can raise, with ours and its message."""


_HINTS: tuple[tuple[type[Exception], str, str], ...] = (
    (httpx.ConnectError, "WRONG_VERSION_NUMBER", "{url} does not speak https: use http://"),
    (httpx.ConnectError, "record layer failure", "{url} does not speak https: use http://"),
    (httpx.ConnectError, "packet length too long", "{url} does not speak https: use http://"),
    (
        httpx.ConnectError,
        "certificate has expired",
        "the certificate of {url} has expired: whoever runs the service has to renew it, and send "
        "it SIGHUP",
    ),
    (
        httpx.ConnectError,
        "CERTIFICATE_VERIFY_FAILED",
        "the certificate of {url} is not trusted ({reason}): name the certificates that are in "
        "VIM_EMBED_CA_FILE",
    ),
    (httpx.ConnectError, "Name or service", "there is no host of {url}: check VIM_EMBED_URL"),
    (
        httpx.ConnectError,
        "name resolution",
        "no host of {url} is found: is there a network?",
    ),
    (
        httpx.RemoteProtocolError,
        "illegal status line",
        "{url} does not speak HTTP ({reason}): another program has this port, or it wants "
        "https://. Check VIM_EMBED_URL",
    ),
    (
        httpx.RemoteProtocolError,
        "without sending a response",
        "{url} closed the connection without an answer. Was the service stopped or restarted? "
        "Does it want https://, or has another program this port?",
    ),
)
"""What some reasons mean: the exception, a part of its text, and our message in its place."""


def error_from_httpx(error: Exception, *, url: str, request_id: str | None = None) -> VimEmbedError:
    """Our exception for one of httpx's; one that is not in the table is a programming error."""
    cls, message = next(FROM_HTTPX[base] for base in type(error).__mro__ if base in FROM_HTTPX)
    reason = str(error) or type(error).__name__
    hints = (text for kind, part, text in _HINTS if isinstance(error, kind) and part in reason)
    message = next(hints, message)
    return cls(message.format(url=url, reason=reason), request_id=request_id)


def deadline_expired(deadline: float | None) -> DeadlineExpiredError:
    """The error for a call that took longer than its `deadline` in seconds."""
    return DeadlineExpiredError(f"not done within the deadline of {deadline:g} s: raise it")
