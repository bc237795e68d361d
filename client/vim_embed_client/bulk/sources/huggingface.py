"""Rows of Hugging Face data sets: a local folder, or one from the Hub, streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from vim_embed_client.bulk.sources.parquet import TableColumns
from vim_embed_client.bulk.sources.reader import Entry
from vim_embed_client.errors import ConfigurationError, InputError, VimEmbedError

PREFIX = "hf:"
_ROWS = 16


class HfReader:
    """`hf:path-or-name[:split[:column]]`; ids are `hf:path-or-name:split#row`.

    A folder that `save_to_disk` wrote, a folder of data files, or a name on the Hub.
    """

    def __init__(self, spec: str, columns: TableColumns) -> None:
        path, split, column = _parse(spec.removeprefix(PREFIX))
        self._path, self._split = path, split
        self._columns = columns.with_column(column)
        self.name = spec

    def stamp(self) -> str:
        if os.path.isdir(self._path):
            return "\0".join([self.name, *_files(self._path)])
        return f"{self.name}\0{_datasets().load_dataset_builder(self._path).config_id}"

    def count(self) -> int | None:
        try:
            data = self._data
        except InputError:
            return None
        if hasattr(data, "__len__"):
            return len(data)
        known = (data.info.splits or {}).get(str(data.split))
        return known.num_examples if known and known.num_examples else None

    def read(self, start: int) -> Iterator[Entry]:
        datasets = _datasets()
        data = self._data
        columns = self._columns.columns(data.features.arrow_schema) if data.features else None
        if columns is None:
            raise InputError("the data set does not say what columns it has")
        data = data.select_columns(columns)
        if isinstance(data.features[columns[0]], datasets.Image):
            data = data.cast_column(columns[0], datasets.Image(decode=False))
        name = f"{PREFIX}{self._path}:{data.split or self._split or 'train'}"
        for table in self._tables(data, start):
            yield from self._columns.entries(table, columns, name, start)
            start += len(table)

    def _tables(self, data: Any, start: int) -> Iterator[Any]:
        """Arrow tables from row `start` on.

        Raises VimEmbedError and not InputError where a stream breaks off: what follows is not to
        be taken for unreadable.
        """
        if hasattr(data, "__len__") and start >= len(data):
            return
        try:
            yield from data.skip(start).with_format("arrow").iter(batch_size=_ROWS)
        except Exception as error:  # files and networks fail in every way
            raise VimEmbedError(
                f"{self.name} broke off ({error}): the same command goes on from there"
            ) from error

    @cached_property
    def _data(self) -> Any:
        datasets = _datasets()
        try:
            if os.path.exists(os.path.join(self._path, "state.json")) or os.path.exists(
                os.path.join(self._path, "dataset_dict.json")
            ):
                found = datasets.load_from_disk(self._path)
            else:
                found = datasets.load_dataset(self._path, split=self._split, streaming=True)
        except Exception as error:  # its loaders raise errors of every kind
            raise InputError(f"cannot be opened as a data set ({error})") from None
        if not isinstance(found, dict):
            return found
        return _chosen(found, self._split)


def _chosen(found: dict[str, Any], split: str | None) -> Any:
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    wanted = split or "train"
    if wanted not in found:
        raise InputError(f"it has no split {wanted!r}, but {', '.join(found)}")
    return found[wanted]


def _parse(text: str) -> tuple[str, str | None, str | None]:
    path, _, rest = text.partition(":")
    split, _, column = rest.partition(":")
    if not path:
        raise ConfigurationError("hf: is followed by a folder or a name: hf:name:split:column")
    return path, split or None, column or None


def _files(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            found = os.stat(path)
            yield f"{path}\0{found.st_size}\0{found.st_mtime_ns}"


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigurationError('hf: needs datasets: pip install "vim-embed[hf]"') from None
    return datasets
