"""One port, one service: whoever comes second is told so, whatever the modes and families."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from vim_embed.server.sockets import UnixSocket, tcp_sockets
from vim_embed.settings import Settings


@contextmanager
def listening(host: str, port: int, count: int) -> Iterator[int]:
    """The sockets of a service that has started; its port."""
    with ExitStack() as stack:
        opened = tcp_sockets(Settings(host=host, port=port, http_processes=count), count)
        for each in opened:
            stack.enter_context(each)
        yield opened[0].getsockname()[1]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


SAME = ["127.0.0.1", "0.0.0.0", "localhost"]
PAIRS = [(one, other) for one in SAME for other in SAME]
PAIRS += [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("::", "0.0.0.0"), ("0.0.0.0", "::")]
PAIRS += [("::", "::1"), ("::1", "::"), ("localhost", "::1"), ("::", "127.0.0.1")]


@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("hosts", PAIRS, ids=str)
def test_a_second_service_on_a_port_is_refused(
    hosts: tuple[str, str], counts: tuple[int, int]
) -> None:
    if any(":" in host for host in hosts) and not _has_ipv6():
        pytest.skip("needs IPv6")
    with (
        listening(hosts[0], 0, counts[0]) as port,
        pytest.raises(ValueError, match=r"cannot listen on .*in use"),
        listening(hosts[1], port, counts[1]),
    ):
        pass
    with listening(hosts[1], port, counts[1]):  # once the first is gone
        pass


def test_other_addresses_of_one_port_are_other_services() -> None:
    with listening("127.0.0.2", 0, 2) as port, listening("127.0.0.3", port, 2) as same:
        assert same == port


def test_a_foreign_socket_that_shares_is_found_too() -> None:
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        with pytest.raises(ValueError, match="in use"):
            tcp_sockets(Settings(port=foreign.getsockname()[1], http_processes=2), 2)


@pytest.mark.parametrize("counts", [(2,) * 8, (1, 2) * 4], ids=["sharing", "mixed"])
def test_of_many_that_start_at_once_one_wins(counts: Sequence[int]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready, won, lost = threading.Barrier(len(counts)), [], []

    def start(count: int) -> None:
        ready.wait()
        try:
            won.append(tcp_sockets(Settings(port=port, http_processes=count), count))
        except ValueError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=start, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, len(counts) - 1)
    assert all("choose another --port" in reason for reason in lost)
    for each in won[0]:
        each.close()


def test_of_many_that_start_at_once_one_has_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    left = UnixSocket(path)
    left.socket.close()  # as by a kill: all find a socket that nobody listens on
    ready, won, lost = threading.Barrier(8), [], []

    def start() -> None:
        ready.wait()
        try:
            won.append(UnixSocket(path))
        except ValueError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    won[0].socket.close()


def test_a_unix_socket_whose_service_is_stopped_is_still_its_own(tmp_path: Path) -> None:
    """Nobody accepts, and the line of those who wait is full."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as stopped, ExitStack() as stack:
        stopped.bind(str(path))
        stopped.listen(1)
        for _ in range(20):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(ValueError, match="another process"):
            UnixSocket(path)
