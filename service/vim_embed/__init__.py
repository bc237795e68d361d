"""vim-embed service: native Vision Mamba and ViT proxies behind a batched HTTP API."""
