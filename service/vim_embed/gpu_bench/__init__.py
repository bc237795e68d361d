"""The old name of `vim_embed.bench.gpu`, kept for one release."""
