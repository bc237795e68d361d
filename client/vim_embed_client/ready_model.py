"""The model that a command is about to use, or why it cannot answer yet."""

from __future__ import annotations

from vim_embed_client.client import Client
from vim_embed_client.errors import NotReadyError
from vim_embed_client.results import ModelEntry


def ready_model(client: Client, name: str | None = None) -> ModelEntry:
    """The model of this name, or the service's own choice. Raises NotReadyError."""
    entry = client.model(name or client.models()["default"])
    if entry["state"] != "ready":
        reason = f": {entry['reason']}" if entry["reason"] else ""
        raise NotReadyError(
            f"{entry['name']} is {entry['state']}{reason}. `vim-embed models` says when it is ready"
        )
    return entry
