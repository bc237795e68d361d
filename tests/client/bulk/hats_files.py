"""Writes HATS catalogues with the library's own writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_hats(
    folder: Path, columns: dict[str, Any], positions: tuple[str, str], order: int
) -> Any:
    """A catalogue of pieces of one HEALPix order; returns its rows in the order of the pieces."""
    import pandas
    from hats.catalog import PartitionInfo, TableProperties
    from hats.io import file_io, paths, write_parquet_metadata
    from hats.pixel_math import HealpixPixel
    from hats.pixel_math.spatial_index import compute_spatial_index

    index = compute_spatial_index(*(np.asarray(columns[name]) for name in positions))
    table = pandas.DataFrame({**columns, "_healpix_29": index}).sort_values("_healpix_29")
    pieces = np.asarray(table["_healpix_29"]) >> (2 * (29 - order))
    pixels = [HealpixPixel(order, int(number)) for number in np.unique(pieces)]
    for pixel in pixels:
        path = paths.pixel_catalog_file(folder, pixel)
        file_io.make_directory(path.parent, exist_ok=True)
        file_io.write_dataframe_to_parquet(table[pieces == pixel.pixel], path)
    write_parquet_metadata(folder, create_thumbnail=True)
    PartitionInfo.from_healpix(pixels).write_to_file(paths.get_partition_info_pointer(folder))
    TableProperties(
        catalog_name="cat", catalog_type="object", total_rows=len(table), ra_column=positions[0],
        dec_column=positions[1], healpix_order=29, healpix_column="_healpix_29",
    ).to_properties_file(folder)  # fmt: skip
    return table
