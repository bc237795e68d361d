"""Catalogues in Parquet, whose columns are read one by one."""

from __future__ import annotations

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.exact import EXACT
from vim_embed_client.sky.table_columns import Column, Part, with_text
from vim_embed_client.sky.table_files import TableFile

_EXACT = {"float": 1 << 24, "halffloat": 1 << 11}


def parquet_table(file: TableFile) -> list[Part]:
    """The table of a Parquet file. Raises ConfigurationError where pyarrow is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    opened = parquet.ParquetFile(file.seekable())

    def column(name: str, kind: str) -> Column:
        read = with_text(lambda: list(opened.read([name])[name].to_pylist()))
        return Column(read, exact=_EXACT.get(kind, EXACT))

    schema = opened.schema_arrow
    return [Part(0, "", {one.name: column(one.name, str(one.type)) for one in schema})]
