"""What every test may rely on."""

from __future__ import annotations

import signal

# A shell's background jobs ignore SIGINT, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
