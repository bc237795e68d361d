"""When a request is tried again, when it is not, and how a call ends early."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vim_embed_client import (
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceededError,
    DeadlineExpiredError,
    InternalServerError,
    InvalidInputError,
    NotReadyError,
    PayloadTooLargeError,
    QueueFullError,
    ServerUnreachableError,
    TimedOutError,
    UnexpectedStatusError,
    VimEmbedError,
)
from vim_embed_client.concurrency import Cancelled, GuardedStream, Scope
from vim_embed_client.options import Options
from vim_embed_client.requests import tell_deadline
from vim_embed_client.retries import (
    MAX_BACKOFF_S,
    MAX_RETRY_AFTER_S,
    caller_deadline,
    retry_delay,
)

from .conftest import MakeClient
from .fake_service import FakeService, answer, break_off, embed_rows, refuse, wait_for
from .fake_service import error as fake_error

Pixels = NDArray[np.float32]


@pytest.mark.parametrize(
    "fault",
    [
        refuse(408, "request_timeout"),
        refuse(429, "queue_full", retry_after="0"),
        refuse(500, "internal_error"),
        refuse(503, "not_ready"),
        refuse(503, "draining"),
        answer(b"<html>bad gateway</html>", "text/html", 502),
        break_off,
    ],
)
def test_passing_faults_are_retried(
    client: Any, pixels: Pixels, service: FakeService, fault: Any
) -> None:
    service.faults.extend([fault, fault])
    np.testing.assert_array_equal(client.embed(pixels), embed_rows(pixels))
    assert len({seen.headers["x-request-id"] for seen in service.seen}) == 1
    assert len(service.seen) == 3


def test_images_are_sent_whole_again(client: Any, service: FakeService) -> None:
    service.faults.append(refuse(503, "draining"))
    assert len(client.embed_images([Image.new("RGB", (8, 8)), Image.new("L", (8, 8))])) == 2


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (refuse(422, "invalid_input"), InvalidInputError),
        (refuse(504, "deadline_exceeded"), DeadlineExceededError),
        (answer(b"no", "text/plain", 501), UnexpectedStatusError),
        (answer(b"no", "text/plain", 504), UnexpectedStatusError),
    ],
)
def test_final_refusals_are_not_retried(
    client: Any, pixels: Pixels, service: FakeService, fault: Any, error: type[VimEmbedError]
) -> None:
    service.faults.append(fault)
    with pytest.raises(error):
        client.embed(pixels)
    assert len(service.seen) == 1


def test_retries_are_counted(make_client: MakeClient, pixels: Pixels, service: FakeService) -> None:
    service.always = refuse(500, "internal_error")
    with pytest.raises(InternalServerError):
        make_client(max_retries=1).embed(pixels)
    assert len(service.seen) == 2


def test_health_is_asked_once(client: Any, service: FakeService) -> None:
    service.ready = False
    with pytest.raises(NotReadyError, match="still loading"):
        client.ready()
    assert service.health_requests == 1


def test_with_options_changes_one_client_only(
    client: Any, pixels: Pixels, service: FakeService
) -> None:
    service.faults.extend([refuse(500, "internal_error")] * 5)
    patient = client.with_options(max_retries=4)
    with pytest.raises(InternalServerError):
        patient.embed(pixels)
    patient.close()
    assert len(service.seen) == 5
    assert len(client.embed(pixels)) == 10
    with pytest.raises(ConfigurationError, match="no such option: base_url"):
        client.with_options(base_url="http://other")


def _options(**changes: Any) -> Options:
    options: dict[str, Any] = {
        "timeout": 1.0,
        "max_retries": 2,
        "deadline": None,
        "rows_per_request": 1,
        "in_flight": 1,
        "backoff": 0.5,
    }
    return Options.resolve("http://service", None, **options | changes)


def _delays(error: VimEmbedError, *, attempt: int, **changes: Any) -> list[float]:
    options = _options(**changes)
    delays = [retry_delay(error, attempt=attempt, options=options) for _ in range(200)]
    return [delay for delay in delays if delay is not None]


def test_backoff_doubles_with_jitter_up_to_a_limit() -> None:
    error = ServerUnreachableError("down")
    for attempt, most in ((0, 0.5), (1, 1.0), (2, 2.0), (9, MAX_BACKOFF_S)):
        delays = _delays(error, attempt=attempt, max_retries=10)
        assert len(set(delays)) > 100
        assert most / 2 <= min(delays) <= max(delays) <= most


def test_retry_after_is_honoured_up_to_a_limit() -> None:
    def after(value: str) -> list[float]:
        return _delays(QueueFullError("full", retry_after=value), attempt=0)

    assert 7 <= min(after("7")) <= max(after("7")) <= 7.7
    assert MAX_RETRY_AFTER_S <= max(after("86400")) <= MAX_RETRY_AFTER_S * 1.1
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 15 < min(after(soon)) <= max(after(soon)) <= 22
    assert max(after("soon")) <= 0.5


def test_no_delay_where_there_is_no_retry() -> None:
    assert not _delays(InvalidInputError("no"), attempt=0)
    assert not _delays(QueueFullError("full"), attempt=2)


def test_a_failed_piece_ends_the_call_and_the_rest_is_never_sent(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    never = threading.Event()
    service.faults.extend([wait_for(never), refuse(422, "invalid_input")])
    with pytest.raises(InvalidInputError) as caught:
        make_client(rows_per_request=1, in_flight=2).embed(pixels)
    assert caught.value.request_id == "from-the-service"
    assert len(service.seen) == 2
    never.set()


def test_an_error_in_on_progress_ends_the_call(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyError("stop")

    open_, never = threading.Event(), threading.Event()
    open_.set()
    service.faults.append(wait_for(open_))  # for the first piece alone
    service.always = wait_for(never)
    with pytest.raises(KeyError, match="stop"):
        make_client(rows_per_request=1, in_flight=1).embed(pixels, on_progress=stop)
    assert len(service.seen) <= 2
    never.set()


@pytest.mark.parametrize("rows_per_request", [10, 4])
def test_the_deadline_covers_the_whole_call(
    make_client: MakeClient, pixels: Pixels, service: FakeService, rows_per_request: int
) -> None:
    never = threading.Event()
    service.always = wait_for(never)
    client = make_client(deadline=0.2, rows_per_request=rows_per_request)
    with pytest.raises(DeadlineExpiredError, match=r"0\.2 s"):
        client.embed(pixels)
    never.set()


def test_the_deadline_covers_waiting_between_attempts(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    service.always = refuse(429, "queue_full", retry_after="60")
    with pytest.raises(DeadlineExpiredError):
        make_client(deadline=0.2).embed(pixels)


def test_a_silent_service_times_out(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    never = threading.Event()
    service.always = wait_for(never)
    with pytest.raises(TimedOutError, match="Raise `timeout`"):
        make_client(timeout=0.2).embed(pixels)
    assert len(service.seen) == 1
    never.set()


def test_no_server_says_what_to_do(make_client: MakeClient, pixels: Pixels) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match=r"vim-embed-server serve.*VIM_EMBED_URL"):
            make_client(base_url=url).embed(pixels)


@contextmanager
def _resetting_server(count: int) -> Iterator[tuple[str, list[int]]]:
    """Accepts connections, reads a little of each request and resets them."""
    accepted: list[int] = []

    def run(listener: socket.socket) -> None:
        while len(accepted) < count:
            connection, _ = listener.accept()
            accepted.append(len(connection.recv(1000)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", accepted
        thread.join()


def test_a_reset_in_the_middle_of_the_body_is_retried(make_client: MakeClient) -> None:
    large = np.zeros((8, 3, 512, 512), np.float32)
    with _resetting_server(3) as (url, accepted):
        with pytest.raises(ConnectionLostError) as caught:
            make_client(base_url=url).embed(large)
        assert caught.value.request_id
    assert len(accepted) == 3


async def _refuse_unread(service: FakeService, request: Any) -> Any:
    return fake_error(413, "payload_too_large", "at most 1 MiB")


def test_a_refusal_before_the_body_is_read_is_understood(client: Any, service: FakeService) -> None:
    service.faults.append(_refuse_unread)
    with pytest.raises(PayloadTooLargeError, match="at most 1 MiB"):
        client.embed(np.zeros((8, 3, 512, 512), np.float32))
    assert len(service.seen) == 1


def test_a_body_is_not_sent_on_when_nobody_wants_it() -> None:
    with Scope(None) as scope:
        body = iter(GuardedStream(httpx.ByteStream(b"whole"), scope))
        assert next(body) == b"whole"
        body = iter(GuardedStream(httpx.ByteStream(b"whole"), scope))
    with pytest.raises(Cancelled):
        next(body)


@pytest.mark.parametrize(
    ("error", "attempts", "elapsed", "again"),
    [
        (ServerUnreachableError("down"), 9, 59.0, True),
        (ServerUnreachableError("down"), 9, 60.0, False),
        (ServerUnreachableError("down"), 1, 600.0, True),  # max_retries is the least
        (NotReadyError("loading"), 40, 1.0, True),
        (QueueFullError("full"), 9, 1.0, False),  # it has not gone
        (InternalServerError("bad row"), 9, 1.0, False),
        (InvalidInputError("bad row"), 0, 1.0, False),
    ],
)
def test_a_service_that_restarts_is_waited_for(
    error: VimEmbedError, attempts: int, elapsed: float, again: bool
) -> None:
    options = _options(retry_for=60.0)
    delay = retry_delay(error, attempt=attempts, options=options, elapsed=elapsed)
    assert (delay is not None) == again
    none = _options(retry_for=60.0, max_retries=0)
    assert retry_delay(error, attempt=0, options=none) is None


def test_attempts_go_on_for_as_long_as_was_asked(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    service.faults.extend([refuse(503, "draining")] * 6)
    client = make_client(max_retries=1, retry_for=60.0)
    np.testing.assert_array_equal(client.embed(pixels), embed_rows(pixels))
    assert len(service.seen) == 7


@pytest.mark.parametrize("late", [DeadlineExceededError("504"), TimedOutError("silent")])
def test_one_error_for_the_end_of_the_deadline(late: VimEmbedError) -> None:
    options = _options(deadline=0.2)
    assert isinstance(caller_deadline(late, -1e-6, options), DeadlineExpiredError)
    for left in (0.1, None):  # the service's own limit, or the timeout of one attempt
        assert caller_deadline(late, left, options) is late
    refused = InvalidInputError("422")
    assert caller_deadline(refused, -1e-6, options) is refused


@pytest.mark.parametrize("seconds", [0.2990001, 0.0001, 1.0, 59.9999])
def test_the_service_never_gives_up_before_its_client(seconds: float) -> None:
    request = httpx.Request("POST", "http://localhost/embed")
    tell_deadline(request, seconds)
    assert seconds <= float(request.headers["Timeout"]) < seconds + 0.0011
