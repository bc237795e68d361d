"""The errors of the service: one class per code of docs/http.md.

ServiceError
├── MalformedRequest      400
├── Unauthorized          401
├── Forbidden             403
├── UnknownModel          404
├── NotFound              404
├── MethodNotAllowed      405
├── NotAcceptable         406
├── RequestTimeout        408  retry
├── Conflict              409
├── PayloadTooLarge       413
├── UnsupportedMediaType  415
├── UnsupportedEncoding   415  with Accept-Encoding
├── InvalidInput          422
├── QueueFull             429  retry, with Retry-After
│   └── ShareFull
├── HeadTooLarge          431
├── InternalError         500  retry
├── NotReady              503  retry
├── WorkerFailed          503  retry
├── TooManyConnections    503  retry, with Retry-After
├── Draining              503  retry
└── DeadlineExceeded      504

Raised by any layer from the queue up; turned into an answer in one place (http/error_answers.py),
and in server/connection.py where no request got that far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

MESSAGE_LENGTH = 2000  # characters of a message
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")  # of an object, in what Python says of it


class ServiceError(Exception):
    """A refusal or failure that the caller is told about, with the fix in its message."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    reason: ClassVar[str] = ""  # in metrics, where it says more than the code
    retryable: ClassVar[bool] = True
    headers: ClassVar[Mapping[str, str]] = {}  # of the answer

    def __init__(
        self,
        message: str,
        *,
        detail: Mapping[str, object] | None = None,
        retry_after: int | None = None,
    ) -> None:
        message = _ADDRESS.sub("", message)  # nobody's business
        if len(message) > MESSAGE_LENGTH:  # it quotes what the caller sent
            message = f"{message[:MESSAGE_LENGTH]}…"
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after = retry_after

    def body(self, request_id: str) -> dict[str, object]:
        """The answer's JSON: `{"error": {"code", "message", "request_id", "detail"?}}`."""
        error: dict[str, object] = {
            "code": self.code,
            "message": self.message,
            "request_id": request_id,
        }
        if self.detail is not None:
            error["detail"] = dict(self.detail)
        return {"error": error}


class MalformedRequest(ServiceError):
    code, status, retryable = "malformed_request", 400, False


class Unauthorized(ServiceError):
    code, status, retryable = "unauthorized", 401, False


class Forbidden(ServiceError):
    code, status, retryable = "forbidden", 403, False


class UnknownModel(ServiceError):
    code, status, retryable = "unknown_model", 404, False


class NotFound(ServiceError):
    code, status, retryable = "not_found", 404, False


class MethodNotAllowed(ServiceError):
    code, status, retryable = "method_not_allowed", 405, False


class NotAcceptable(ServiceError):
    code, status, retryable = "not_acceptable", 406, False


class RequestTimeout(ServiceError):
    code, status, retryable = "request_timeout", 408, True


class Conflict(ServiceError):
    code, status, retryable = "conflict", 409, False


class PayloadTooLarge(ServiceError):
    code, status, retryable = "payload_too_large", 413, False


class UnsupportedMediaType(ServiceError):
    code, status, retryable = "unsupported_media_type", 415, False


class UnsupportedEncoding(ServiceError):
    code, status, retryable = "unsupported_encoding", 415, False
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "zstd, gzip, deflate"}


class InvalidInput(ServiceError):
    code, status, retryable = "invalid_input", 422, False


class QueueFull(ServiceError):
    code, status, retryable = "queue_full", 429, True


class ShareFull(QueueFull):
    """There is room, but not for this client, which fills its share."""

    reason = "client_share"


class HeadTooLarge(ServiceError):
    code, status, retryable = "head_too_large", 431, False


class InternalError(ServiceError):
    code, status, retryable = "internal_error", 500, True


class NotReady(ServiceError):
    code, status, retryable = "not_ready", 503, True


class WorkerFailed(ServiceError):
    code, status, retryable = "worker_failed", 503, True


class TooManyConnections(ServiceError):
    code, status, retryable = "too_many_connections", 503, True


class Draining(ServiceError):
    code, status, retryable = "draining", 503, True


class DeadlineExceeded(ServiceError):
    code, status, retryable = "deadline_exceeded", 504, False


ERRORS: tuple[type[ServiceError], ...] = tuple(ServiceError.__subclasses__())


class WeightsError(RuntimeError):
    """Weights that cannot be found, read or matched; the message says what to do."""
