"""`python -m vim_embed_client.cli`."""

from vim_embed_client.cli.main import main

if __name__ == "__main__":
    main()
