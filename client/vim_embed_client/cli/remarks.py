"""What commands that score files say of them: other pixels of one, labels that contradict it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from vim_embed_client.bulk.recorded_options import read_otherwise
from vim_embed_client.cli.common import say, stderr
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.labels import Labelled, contradictions


def other_options(files: Sequence[EmbeddingFile]) -> list[str]:
    """`--stretch linear for a.npy, asinh for b.npy`: what differs between the first and another.

    Files that do not tell their options are passed over.
    """
    told = [(file.label, file.options) for file in files if file.options]
    found: dict[str, None] = {}  # a file may be several times among them
    for label, options in told[1:]:
        if unlike := read_otherwise(told[0][1], options, (told[0][0], label)):
            found["; ".join(unlike)] = None
    return list(found)


def remark_on_options(files: Sequence[EmbeddingFile]) -> str | None:
    """The same as a sentence, if there is anything to say."""
    unlike = other_options(files)
    if not unlike:
        return None
    return (
        f"The files were read with other options: {'; '.join(unlike)}. Part of what "
        "differs may be that: embed them alike where the surveys allow it."
    )


def warn_of_labels(labelled: Sequence[Labelled]) -> list[str]:
    """Say on standard error which labels contradict their files; the sentences, for reports."""
    found = [f"{each}." for each in contradictions(labelled)]
    for each in found:
        say(stderr(), f"[yellow]Warning: {escape(each)}[/]")
    return found
