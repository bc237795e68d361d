"""What a service says about its batches, from its Prometheus metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx

from vim_embed_client.options import DEFAULT_TIMEOUT, Options

_SAMPLE = re.compile(r'^vim_embed_(\w+)\{model="((?:[^"\\]|\\.)*)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Scrape:
    """Sums of one model: batches, their rows, and the seconds of gathering and computing them."""

    batches: float
    rows: float
    stage_seconds: float
    forward_seconds: float

    def __sub__(self, before: Scrape) -> Scrape:
        return Scrape(
            self.batches - before.batches,
            self.rows - before.rows,
            self.stage_seconds - before.stage_seconds,
            self.forward_seconds - before.forward_seconds,
        )

    @property
    def per_batch(self) -> dict[str, float] | None:
        """Means: rows, and milliseconds of stage and forward; None without a batch."""
        if self.batches <= 0:
            return None
        return {
            "rows": self.rows / self.batches,
            "stage_ms": 1e3 * self.stage_seconds / self.batches,
            "forward_ms": 1e3 * self.forward_seconds / self.batches,
        }


def scrape(url: str, api_key: str | None, model: str) -> Scrape | None:
    """The sums of `model` now; None where the service does not show them."""
    options = Options.resolve(
        url, api_key, timeout=DEFAULT_TIMEOUT, max_retries=0, deadline=None, rows_per_request=1,
        in_flight=1, backoff=0.0,
    )  # fmt: skip
    try:
        with httpx.Client(proxy=options.proxy(), verify=options.verify(), trust_env=False) as http:
            answer = http.get(f"{options.base_url}/metrics", headers=options.headers())
    except httpx.HTTPError:
        return None
    if answer.status_code != 200:
        return None
    return read(answer.text, model)


def read(text: str, model: str) -> Scrape | None:
    """The sums in a Prometheus text; before a first batch they are zero, not absent."""
    if "vim_embed_batches" not in text:
        return None
    found = {name: float(value) for name, of, value in _SAMPLE.findall(text) if of == model}
    return Scrape(
        found.get("batch_rows_count", 0.0),
        found.get("batch_rows_sum", 0.0),
        found.get("stage_seconds_sum", 0.0),
        found.get("forward_seconds_sum", 0.0),
    )
