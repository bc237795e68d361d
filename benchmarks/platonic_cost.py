"""What one batch costs the client: prints CPU seconds, peak memory and bytes on the wire as JSON.

`python benchmarks/platonic_cost.py uint8`, with a service at VIM_EMBED_URL. Memory is what the call
adds to the process's peak beyond what is resident before it, with the batch itself already there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from vim_embed_client.platonic import RemoteAdapter

ROWS, SIDE = 128, 224
_KIB = 1024


def pixels(wire: str, rows: int) -> torch.Tensor:
    """A batch as the host's data loader gives it."""
    shape = (rows, 3, SIDE, SIDE)
    if wire == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    return torch.randn(shape, dtype=getattr(torch, wire))


def main(wire: str) -> None:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote")
    adapter.load()
    batch = {"hsc": pixels(wire, ROWS)}
    adapter.embed_for_mode({"hsc": pixels(wire, 1)}, "hsc")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    before, cpu = _status("VmRSS"), time.process_time()
    embedded = adapter.embed_for_mode(batch, "hsc")
    cpu = time.process_time() - cpu
    added = _status("VmHWM") - before
    sent = batch["hsc"].nbytes
    assert len(embedded) == ROWS
    print(json.dumps({"bytes": sent, "cpu_s": cpu, "peak_bytes": added, "ratio": added / sent}))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * _KIB


if __name__ == "__main__":
    main(sys.argv[1])
