"""Rows of Hugging Face data sets: a local folder, or one from the Hub, streamed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from vim_embed_client.bulk.sources.arrow_values import Values, are_lists_of_images
from vim_embed_client.bulk.sources.faults import described
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.parquet import TableColumns, table_entries
from vim_embed_client.bulk.sources.reader import Description, Entry, readable
from vim_embed_client.bulk.sources.row_values import RowIds
from vim_embed_client.errors import ConfigurationError, InputError, VimEmbedError
from vim_embed_pixels.spelling import absent

PREFIX = "hf:"
_ROWS = 16


class HfReader:
    """`hf:path-or-name[:split[:column]]`; ids are `hf:path-or-name:split#row`.

    A folder that `save_to_disk` wrote, a folder of data files, or a name on the Hub. Of a set
    with several configurations, ids begin with `hf:path-or-name@config`.
    """

    def __init__(self, spec: str, options: ReadOptions) -> None:
        path, split, column = _parse(spec.removeprefix(PREFIX))
        self._path, self._split, self._config = path, split, options.config
        self._columns = TableColumns(options).with_column(column)
        self.name = spec

    def stamp(self) -> str:
        if os.path.isdir(self._path):
            return "\0".join([self.name, *_files(self._path)])
        builder = _datasets().load_dataset_builder(self._path, self._config)
        return f"{self.name}\0{builder.config_id}"

    def count(self) -> int | None:
        data = self._data
        if are_lists_of_images(_schema(data).field(self._names(data)[0]).type):
            return None
        if hasattr(data, "__len__"):
            return len(data)
        known = (data.info.splits or {}).get(str(data.split))
        return known.num_examples if known and known.num_examples else None

    def describe(self) -> Description:
        names = self._names(self._data)
        chosen = _undecoded(self._data.select_columns(names), names[0])
        rows = next(iter(self._tables(chosen, 0)), _schema(chosen).empty_table())
        found = self._columns.describe(rows, names)
        named = {"--config"} if self._config and not self._saved else set()
        return replace(found, options=found.options | named)

    def read(self, start: int) -> Iterator[Entry]:
        names = self._names(self._data)
        data = _undecoded(self._data.select_columns(names), names[0])
        values = Values(self._columns.options)
        config = f"@{self._config}" if self._config else ""
        name = f"{PREFIX}{self._path}{config}:{data.split or self._split or 'train'}"
        ids = RowIds(readable(name), self._columns.options.id_column)
        if are_lists_of_images(_schema(data).field(names[0]).type) or len(names) > 1:
            # Which rows are done, and which ids were seen, only reading them again tells.
            found = table_entries(self._tables(data, 0), values, names[0], ids, 0)
            yield from itertools.islice(found, start, None)
        else:
            yield from table_entries(self._tables(data, start), values, names[0], ids, start)

    def _names(self, data: Any) -> list[str]:
        if not data.features:
            raise InputError("the data set does not say what columns it has")
        return self._columns.names(_schema(data))

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

    @property
    def _saved(self) -> bool:
        """Whether `save_to_disk` wrote it."""
        marks = (os.path.join(self._path, name) for name in ("state.json", "dataset_dict.json"))
        return any(map(os.path.exists, marks))

    @cached_property
    def _data(self) -> Any:
        datasets = _datasets()
        try:
            if self._saved:
                found = datasets.load_from_disk(self._path)
            else:
                found = datasets.load_dataset(
                    self._path, self._config, split=self._split, streaming=True
                )
        except Exception as error:  # its loaders raise errors of every kind
            fix = "; choose one with --config" if "config" in str(error).lower() else ""
            raise InputError(f"cannot be opened as a data set ({described(error)}){fix}") from None
        if not isinstance(found, dict):
            return found
        return _chosen(found, self._split)


def _schema(data: Any) -> Any:
    return data.features.arrow_schema


def _undecoded(data: Any, column: str) -> Any:
    """The same with the images of a column as they are stored."""
    datasets = _datasets()
    feature = data.features[column]
    if isinstance(feature, datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
        return data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return data


def _chosen(found: dict[str, Any], split: str | None) -> Any:
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    wanted = split or "train"
    if wanted not in found:
        raise InputError(f"it has {absent([wanted], list(found), 'split')}")
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
