"""What every test may rely on."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import cache
from typing import Any

# Before torch is imported: threads of libgomp that wait, as the server's do, rather than spin.
# Spinning, a test's forwards take ten times as long beside other work.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A shell's background jobs ignore SIGINT, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # the GPU's tests do without it
    from hypothesis import settings

    # How long an example takes says something of the machine's other work alone.
    settings.register_profile("suite", deadline=None, print_blob=True)
    settings.load_profile("suite")

with suppress(ImportError):
    from httpx._config import DEFAULT_TIMEOUT_CONFIG as PATIENCE
    from httpx._transports import default

    # 5 s are little for a server's first answer beside other work.
    PATIENCE.connect = PATIENCE.read = PATIENCE.write = PATIENCE.pool = 60.0

    # `httpx.get` and the like, by which tests ask servers, read all certificates each time: 30 ms.
    transports: Any = default
    transports.create_ssl_context = cache(transports.create_ssl_context)
