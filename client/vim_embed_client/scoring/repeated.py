"""MKNN of two files without the sources that equal another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vim_embed_client.scoring.approximate import ApproximateSearch
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.mknn import Score, default_ks, score_curve
from vim_embed_client.scoring.neighbours import NeighbourSearch
from vim_embed_client.scoring.repeats import describe, find_repeats


class Repeated:
    """What is said of sources that equal another one in a file, and the scores without them.

    remarks: a line for each file that has some. n: the sources that are left. scores: of these at
    the same k, as far as they are enough.
    """

    def __init__(
        self,
        files: Sequence[EmbeddingFile],
        distinct: Sequence[EmbeddingFile],
        ks: Sequence[int] | None,
        find: ApproximateSearch | None,
        options: dict[str, Any],
    ) -> None:
        found = [(file, find_repeats(file.embeddings)) for file in files]
        self.files = [
            {"file": file.label, "rows": repeats.rows, "groups": repeats.groups}
            for file, repeats in found
        ]
        self.remarks = [describe(file, repeats) for file, repeats in found if repeats.groups]
        self.n = len(distinct[0])
        wanted = [k for k in ks or default_ks(self.n) if k < self.n]
        self.scores: list[Score] = []
        if wanted:
            searches = [NeighbourSearch(file.embeddings, find) for file in distinct]
            self.scores = score_curve(searches[0], searches[1], wanted, **options)
