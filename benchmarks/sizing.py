"""Machines, network and cost of embedding a catalogue, from measured figures; docs/sizing.md.

    python benchmarks/sizing.py --price 3 --nic 25          # prints the page
    python benchmarks/sizing.py --write docs/sizing.md

Rows/s of a GPU are read from docs/measurements/h100.md, all other figures from sizing.toml.
`simulate` plays requests through the same stages one by one, with measured service times, to check
the formula (tests/benchmarks/test_sizing.py).
"""

from __future__ import annotations

import argparse
import math
import random
import re
import tomllib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROW_BYTES = 3 * 224 * 224
DIMS = {"tiny": 192, "small": 384, "base": 768}
INGRESSES = 8  # replicas of Ray's ingress beside each GPU: half of a machine's 16 cores
EGRESS = 0.05  # of a GB that leaves an archive, an example
SIZES = ((1_000_000, 1.0), (100_000_000, 8.0), (4_000_000_000, 24.0))  # rows, wanted within hours
FIGURES = tomllib.loads((Path(__file__).parent / "sizing.toml").read_text())
HTTP_PROCESS, HTTP_PROCESSES_4 = (FIGURES["http_processes"][k] for k in ("one", "four"))
INGRESS = FIGURES["ray_ingress"]["rows"]


@dataclass(frozen=True)
class Machine:
    """What one machine has, and what it costs.

    gpu_rows: rows/s of one GPU, as they arrive. nic: Gb/s. http_processes: that take requests in;
    0 where Ray's ingress replicas do (`ingresses`), or where engines read the data themselves (Ray
    Data). start: seconds until a GPU answers. price: of a GPU hour.
    """

    gpu_rows: float
    gpus: int = 1
    nic: float = 25.0
    http_processes: int = 4
    ingresses: int = 0
    start: float = 60.0
    price: float = 3.0

    @property
    def over_network(self) -> bool:
        """Whether clients send the pixels."""
        return bool(self.http_processes or self.ingresses)


@dataclass(frozen=True)
class Shared:
    """What all machines share. archive: Gb/s out of where the pixels lie."""

    archive: float = 100.0


@dataclass(frozen=True)
class Plan:
    """The machines for one catalogue. rate: rows/s. bottleneck: what bounds them."""

    rows: int
    machines: int
    rate: float
    seconds: float
    bottleneck: str
    cost: float
    clients: int


def stages(machine: Machine, machines: int, shared: Shared) -> dict[str, float]:
    """Rows/s that each stage lets through, all machines together."""
    capacities = {
        "GPU": machine.gpu_rows * machine.gpus * machines,
        "network card": _rows_per_second(machine.nic) * machines,
        "archive": _rows_per_second(shared.archive),
    }
    if machine.http_processes:
        capacities["HTTP"] = _http(machine.http_processes) * machines
    if machine.ingresses:
        capacities["Ray's ingress"] = INGRESS * machine.ingresses * machines
    return capacities


def plan(rows: int, hours: float, machine: Machine, shared: Shared) -> Plan:
    """The fewest machines that finish in time; more where more do not help any further."""
    best: Plan | None = None
    for machines in range(1, 100_000):
        found = _with(rows, machines, machine, shared)
        if found.seconds <= 3600 * hours:
            return found
        if best is not None and found.rate <= best.rate:
            return best
        best = found
    raise ValueError("no number of machines is enough: give it more hours")


def _with(rows: int, machines: int, machine: Machine, shared: Shared) -> Plan:
    capacities = stages(machine, machines, shared)
    bottleneck = min(capacities, key=lambda stage: capacities[stage])
    rate = capacities[bottleneck]
    seconds = machine.start + rows / rate
    if machine.start > rows / rate:
        bottleneck = "start-up"
    clients = math.ceil(rate / _rows_per_second(machine.nic)) if machine.over_network else 0
    cost = machines * machine.gpus * machine.price * seconds / 3600
    return Plan(rows, machines, rate, seconds, bottleneck, cost, clients)


def _rows_per_second(gigabits: float) -> float:
    return gigabits * 1e9 / 8 / ROW_BYTES


def _http(processes: int) -> float:
    """Between the two that were measured, in proportion; beyond four not more."""
    share = (min(processes, 4) - 1) / 3
    return HTTP_PROCESS + share * (HTTP_PROCESSES_4 - HTTP_PROCESS)


def measured(text: str) -> dict[str, dict[int, float]]:
    """By model and batch size, images/s of the 224×224 float16 table of measurements/h100.md."""
    table = text[text.index("| 224×224, float16 |") :].split("\n\n")[0]
    found: dict[str, dict[int, float]] = {name: {} for name in DIMS}
    for name, batch, rate in re.findall(r"\| (\w+) \| (\d+) \| (\d+)", table):
        found[name][int(batch)] = float(rate)
    return found


def best_rate(rates: dict[int, float]) -> float:
    """Of full batches, whichever size does best."""
    return max(rates.values())


# the simulation


@dataclass(frozen=True)
class Traffic:
    """requests of `rows` rows each, `in_flight` of them at a time."""

    requests: int = 4000
    rows: int = 64
    in_flight: int = 64


def simulate(
    rates: dict[int, float], machine: Machine, machines: int, shared: Shared, traffic: Traffic
) -> float:
    """Rows/s of requests that go through archive, network card, HTTP process and GPU queue.

    rates: images/s by batch size; a GPU takes what waits, up to the largest of these, for the
    time that such a batch was measured to take. Every service time varies by a tenth.
    """
    import simpy

    world = simpy.Environment()
    noise = random.Random(0)
    archive = simpy.Resource(world)
    nodes = [_Node(world, machine, rates, noise) for _ in range(machines)]
    tokens = simpy.Resource(world, traffic.in_flight * machines)
    finished: list[float] = []

    def request(node: _Node) -> Generator[Any, Any, None]:
        with tokens.request() as token:
            yield token
            yield from _hold(world, archive, traffic.rows / _rows_per_second(shared.archive), noise)
            yield from node.take(traffic.rows)
            finished.append(world.now)

    for number in range(traffic.requests):
        world.process(request(nodes[number % machines]))
    world.run()
    settled = finished[len(finished) // 5 :]  # the first fifth fills the pipeline
    return (len(settled) - 1) * traffic.rows / (settled[-1] - settled[0])


class _Node:
    """One machine: a network card, HTTP processes, and GPUs that share a queue."""

    def __init__(
        self, world: Any, machine: Machine, rates: dict[int, float], noise: random.Random
    ) -> None:
        import simpy

        self._world, self._machine, self._noise = world, machine, noise
        self._card = simpy.Resource(world)
        processes = machine.http_processes
        self._http = simpy.Resource(world, processes) if processes else None
        self._ingress = simpy.Resource(world, machine.ingresses) if machine.ingresses else None
        self._queue = simpy.Store(world)
        self._times = sorted((batch, batch / rate) for batch, rate in rates.items())
        for _ in range(machine.gpus):
            world.process(self._gpu())

    def take(self, rows: int) -> Generator[Any, Any, None]:
        card = rows / _rows_per_second(self._machine.nic)
        yield from _hold(self._world, self._card, card, self._noise)
        if self._http is not None:
            each = _http(self._machine.http_processes) / self._machine.http_processes
            yield from _hold(self._world, self._http, rows / each, self._noise)
        if self._ingress is not None:
            yield from _hold(self._world, self._ingress, rows / INGRESS, self._noise)
        done = self._world.event()
        yield self._queue.put((rows, done))
        yield done

    def _gpu(self) -> Iterator[Any]:
        largest = self._times[-1][0]
        while True:
            rows, done = yield self._queue.get()
            batch = [done]
            while self._queue.items and rows + self._queue.items[0][0] <= largest:
                more, other = yield self._queue.get()
                rows += more
                batch.append(other)
            yield self._world.timeout(_vary(self._seconds(rows), self._noise))
            for event in batch:
                event.succeed()

    def _seconds(self, rows: int) -> float:
        """Of a batch, between those measured in proportion."""
        for (small, low), (large, high) in zip(self._times, self._times[1:], strict=False):
            if rows <= large:
                return low + (high - low) * max(0, rows - small) / (large - small)
        return self._times[-1][1]


def _hold(world: Any, resource: Any, seconds: float, noise: random.Random) -> Iterator[Any]:
    with resource.request() as turn:
        yield turn
        yield world.timeout(_vary(seconds, noise))


def _vary(seconds: float, noise: random.Random) -> float:
    return seconds * noise.uniform(0.9, 1.1)


# the page


_WAYS = {"over_http": "over HTTP", "through_ray": "through Ray", "local": "beside the data"}


def page(machine: Machine, shared: Shared) -> str:
    """docs/sizing.md, for a machine whose gpu_rows are those of each model in turn."""
    rates = measured((ROOT / "docs" / "measurements" / "h100.md").read_text())
    ways = {
        "over_http": machine,
        "through_ray": replace(machine, http_processes=0, ingresses=INGRESSES * machine.gpus),
        "local": replace(machine, http_processes=0),
    }
    template = (Path(__file__).parent / "sizing.md").read_text()
    values = {
        **{key: _table(rates, way, shared) for key, way in ways.items()},
        **{f"from_{key}": figure["from"] for key, figure in FIGURES.items()},
        "ingresses": f"{INGRESSES}",
        "ingress_rows": f"{INGRESS:,.0f}",
        "http_one": f"{HTTP_PROCESS:,.0f}",
        "http_four": f"{HTTP_PROCESSES_4:,.0f}",
        "client_rows": f"{FIGURES['client_core']['rows']:,.0f}",
        "shares": ", ".join(f"{name} {FIGURES['http_share'][name]:.2f}" for name in DIMS),
        "egress_price": f"{EGRESS:g}",
        "egress": ", ".join(f"{rows * ROW_BYTES / 1e9 * EGRESS:,.0f}" for rows, _ in SIZES),
        "first": "\n".join(_first(size, rates, ways, shared) for size in SIZES),
        "nic": f"{machine.nic:g}",
        "archive": f"{shared.archive:g}",
        "price": f"{machine.price:g}",
        "gpus": f"{machine.gpus}",
        "start": f"{machine.start:g}",
        "nic_rows": f"{_rows_per_second(machine.nic):,.0f}",
        "archive_rows": f"{_rows_per_second(shared.archive):,.0f}",
        "gpu_rows": ", ".join(f"{name} {best_rate(rates[name]):,.0f}" for name in DIMS),
    }
    for key, value in values.items():
        template = template.replace("{" + key + "}", value)
    return template


def _plan_of(
    name: str, rates: dict[int, float], rows: int, hours: float, machine: Machine, shared: Shared
) -> Plan:
    share = FIGURES["http_share"][name] if machine.over_network else 1.0
    return plan(rows, hours, replace(machine, gpu_rows=share * best_rate(rates)), shared)


def _first(
    size: tuple[int, float],
    rates: dict[str, dict[int, float]],
    ways: dict[str, Machine],
    shared: Shared,
) -> str:
    """A line that says what gives out first at this size, by way and model."""
    said = []
    for key, machine in ways.items():
        found: dict[str, list[str]] = {}
        for name in DIMS:
            bound = _plan_of(name, rates[name], *size, machine, shared).bottleneck
            found.setdefault(bound, []).append(name)
        each = ", ".join(f"{bound} ({', '.join(names)})" for bound, names in found.items())
        said.append(f"{_WAYS[key]} {each}")
    return f"- {size[0]:,}: {'; '.join(said)}."


def _row(
    name: str,
    rates: dict[int, float],
    rows: int,
    hours: float,
    machine: Machine,
    shared: Shared,
) -> list[str]:
    found = _plan_of(name, rates, rows, hours, machine, shared)
    cells = [
        f"{rows:,}",
        f"{hours:g} h",
        f"vim-{name}",
        f"{found.machines}",
        f"{found.rate:,.0f}",
        _duration(found.seconds),
        f"{_size(rows * ROW_BYTES)} at {found.rate * ROW_BYTES * 8 / 1e9:.0f} Gb/s",
        _size(rows * DIMS[name] * 4),
        f"{found.cost:,.2f}" if found.cost < 10 else f"{found.cost:,.0f}",
        found.bottleneck,
    ]
    return [*cells, f"{found.clients}"] if machine.over_network else cells


def _table(rates: dict[str, dict[int, float]], machine: Machine, shared: Shared) -> str:
    rows = [_row(name, rates[name], *size, machine, shared) for size in SIZES for name in DIMS]
    more = ("client machines",) if machine.over_network else ()
    head = ("galaxies", "within", "model", "machines", "rows/s", "takes", "in", "out", "cost")
    every = [[*head, "first bottleneck", *more], ["---"] * (len(head) + 1 + len(more)), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in every)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _size(size: float) -> str:
    return f"{size / 1e12:,.1f} TB" if size >= 1e12 else f"{size / 1e9:,.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU hour")
    parser.add_argument("--gpus", type=int, default=1, help="in a machine")
    parser.add_argument("--nic", type=float, default=25.0, help="Gb/s of a machine")
    parser.add_argument("--archive", type=float, default=100.0, help="Gb/s of all together")
    parser.add_argument("--start", type=float, default=60.0, help="seconds until a GPU answers")
    parser.add_argument("--write", type=Path, help="write the page there instead of printing it")
    given = parser.parse_args()
    machine = Machine(0.0, given.gpus, given.nic, start=given.start, price=given.price)
    text = page(machine, Shared(given.archive))
    if given.write:
        given.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
