"""vim-embed itself, as `vim-embed-server serve` runs it, but for the engine.

ours.py PORT [ROWS_PER_SECOND]
"""

from __future__ import annotations

import sys

from over_http.marks import MODEL, MarksEngine

import vim_embed.http.app
from vim_embed.observability.logs import configure_logging
from vim_embed.server.server import serve
from vim_embed.settings import Settings

if __name__ == "__main__":
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    vim_embed.engines.build.build_engines = lambda settings, faults=None: [MarksEngine(rate)]
    settings = Settings(port=int(sys.argv[1]), models=(MODEL,), device="cpu")
    configure_logging(settings.log_level, "json")
    sys.exit(serve(settings))
