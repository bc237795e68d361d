"""The client's list of named models is the service's."""

from __future__ import annotations

from vim_embed.weights.catalogue import CATALOGUE
from vim_embed_client.scoring.model_names import HUB_IDS, MODEL_NAMES


def test_the_client_knows_the_service_s_names() -> None:
    assert sorted(MODEL_NAMES) == sorted(CATALOGUE)
    ids = {hub_id: entry.name for entry in CATALOGUE.values() for hub_id in entry.aliases}
    assert ids == HUB_IDS
