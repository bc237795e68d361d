"""Kept for a release: the bench lives in `vim_embed.bench.gpu`."""

from vim_embed.bench.gpu import main

if __name__ == "__main__":
    raise SystemExit(main())
