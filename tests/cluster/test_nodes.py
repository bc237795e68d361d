"""Three nodes on this machine under traffic, while one is killed and another joins.

Every row carries who it is, so that a lost, doubled or swapped one shows. The nodes' proxies share
one port (SO_REUSEPORT), so the killed one takes connections and half-read bodies with it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from support.cluster_parts import (
    HELD,
    OBJECT_STORE,
    arithmetic_embeddings,
    free_port,
    placed,
    prepare_environment,
    states,
)
from support.waiting import until
from vim_embed.settings import Settings
from vim_embed_client import Client, VimEmbedError

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SIDE = 64  # pixels: ten rows and more go through Ray's object store
SENDERS = 12
HOLDERS = 6  # more than there are nodes, so that not all of them are on the head


@dataclass
class Traffic:
    """What senders saw. answers: by the first row's number."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    sent: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    nodes: list[tuple[float, str]] = field(default_factory=list)
    slowest: float = 0.0  # seconds until a request was settled

    def send(self, sender: int) -> None:
        """Send requests until told to stop; every other sender leaves retrying to the client."""
        random = np.random.default_rng(sender)
        with Client(self.url, max_retries=4 * (sender % 2), timeout=30) as client:
            for number in range(100_000):
                if self.stop.is_set():
                    return
                name = sender * 100_000 + number
                self._settle(client, name, identified(name, int(random.integers(1, 16))))

    def hold(self, holder: int) -> None:
        """Send one request that stays on whichever node gets it."""
        number = (SENDERS + holder) * 100_000
        pixels = identified(number, 4)
        pixels[0] = HELD
        with Client(self.url, max_retries=0, timeout=60) as client:
            self._settle(client, number, pixels)

    def _settle(self, client: Client, number: int, pixels: NDArray[np.uint8]) -> None:
        begin = time.monotonic()
        self.sent[number] += 1
        for _ in range(100):
            try:
                answer = client.embed(pixels, model="placed")
            except VimEmbedError as error:
                self.refusals[f"{type(error).__name__}: {error}"[:120]] += 1
                time.sleep(0.2)
                continue
            self.answered[number] += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.nodes.append((time.monotonic(), answer.provenance.device))
            if not np.array_equal(answer.embeddings, arithmetic_embeddings(pixels)):
                self.wrong.append(number)
            return


def identified(number: int, rows: int) -> NDArray[np.uint8]:
    """Rows whose pixels, and so whose embeddings, are those of no other row."""
    random = np.random.default_rng(number)
    return random.integers(0, 256, (rows, 3, SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A cluster of three nodes with a replica and an ingress on each, and its URL.

    Rows are held until `tmp_path` has a file `released`.
    """
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from vim_embed.cluster.deployment import application
    from vim_embed.cluster.settings import ClusterSettings

    prepare_environment()
    node = {"num_cpus": 2, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        port = free_port()
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
        options = ClusterSettings(
            min_replicas=3,
            max_replicas=3,
            ingress_replicas=3,
            cpus=1,
            ingress_cpus=1,
            health_period=1,
        )
        settings = Settings(models=(f"placed={tmp_path}",), drain_timeout=10, request_timeout=60)
        serve.run(application(settings, options, placed))
        url = f"http://127.0.0.1:{port}"
        until(lambda: set(states(url).values()) == {"ready"})
        yield cluster, url
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def test_a_node_is_killed_and_another_joins(cluster: tuple[Any, str], tmp_path: Path) -> None:
    """The one that dies is one that is known to be computing rows at that moment."""
    nodes, url = cluster
    traffic = Traffic(url)
    threads = [threading.Thread(target=traffic.send, args=(i,)) for i in range(SENDERS)]
    holders = [threading.Thread(target=traffic.hold, args=(i,)) for i in range(HOLDERS)]
    for thread in threads:
        thread.start()

    def holding() -> list[Any]:
        return [node for node in nodes.worker_nodes if (tmp_path / node.node_id).exists()]

    try:
        until(lambda: len(devices(traffic, 0)) == 3 and len(traffic.nodes) > 200, 60)
        for thread in holders:
            thread.start()
        until(lambda: bool(holding()), 60)
        victim = holding()[0]
        doomed = f"cpu:{victim.node_id}"
        killed = time.monotonic()
        pull_the_plug(victim)
        (tmp_path / "released").touch()
        nodes.remove_node(victim, allow_graceful=False)
        gone = time.monotonic() + 5
        until(lambda: doomed not in devices(traffic, gone) and devices(traffic, gone), 60)
        joined = nodes.add_node(num_cpus=2, object_store_memory=OBJECT_STORE)
        until(lambda: f"cpu:{joined.node_id}" in devices(traffic, killed), 90)
        time.sleep(2)
    finally:
        traffic.stop.set()
        (tmp_path / "released").touch()
        for thread in (*threads, *(each for each in holders if each.ident)):
            thread.join(120)
    print(
        f"{sum(traffic.answered.values())} requests, {dict(traffic.refusals)} refused and sent "
        f"again, the slowest after {traffic.slowest:.1f} s, computed on "
        f"{Counter(device for _, device in traffic.nodes)}"
    )
    assert traffic.refusals  # of the rows that were held on the node that died
    assert traffic.wrong == []
    assert traffic.answered == traffic.sent
    assert sum(traffic.sent.values()) > 100
    assert doomed in devices(traffic, 0)


def pull_the_plug(node: Any) -> None:
    """Kill all processes of a node at once, as when its machine loses power."""
    (raylet,) = node.all_processes["raylet"]
    parent = psutil.Process(raylet.process.pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.suspend()
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()


def devices(traffic: Traffic, since: float) -> set[str]:
    """Where answers since then were computed."""
    return {device for when, device in list(traffic.nodes) if when >= since}
