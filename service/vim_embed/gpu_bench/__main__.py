"""`python -m vim_embed.gpu_bench`, for one more release."""

import sys

from vim_embed.bench.gpu import main

if __name__ == "__main__":
    print("vim_embed.gpu_bench is now vim_embed.bench.gpu", file=sys.stderr)
    sys.exit(main())
