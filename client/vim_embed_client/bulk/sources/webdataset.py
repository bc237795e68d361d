"""Rows of tar files and webdataset shards, streamed in the order of their members."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tarfile import EmptyHeaderError, InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import Self

import numpy as np

from vim_embed_client.bulk.sources.arrays import check_pixels
from vim_embed_client.bulk.sources.files import IMAGE_SUFFIXES
from vim_embed_client.bulk.sources.reader import Entry, FileReader, Item, Skipped, pixel_item
from vim_embed_client.errors import InputError
from vim_embed_client.formats import NPY_HEADER_LOCK

_FAULTS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
_NPY = ".npy"


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error, where tarfile itself would end quietly."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EmptyHeaderError:
            raise ReadError("it ends without an end mark: was it cut short?") from None
        except (InvalidHeaderError, TruncatedHeaderError) as error:
            raise ReadError(str(error)) from None


class TarReader(FileReader):
    """The images and .npy members of a tar file; the rest, such as labels, is passed over.

    extension: as webdataset splits `key.ext`, at the first dot of the name (`left.png`); only
    such members are rows then. Ids are `shard.tar/member`, with `#row` in arrays of many.
    """

    def __init__(self, path: str, extension: str | None) -> None:
        super().__init__(path)
        self._extension = extension

    def read(self, start: int) -> Iterator[Entry]:
        found = False
        with _faults_named(), self._open() as archive:
            while member := archive.next():
                if self._wanted(member):
                    found = True
                    if start and not member.name.lower().endswith(_NPY):
                        start -= 1
                        continue
                    for entry in self._rows(archive, member):
                        if start == 0:
                            yield entry
                        start = max(0, start - 1)
                archive.members.clear()  # type: ignore[attr-defined]  # or the list grows
        if not found:
            wanted = f".{self._extension} files" if self._extension else "images or .npy files"
            raise InputError(f"there are no {wanted} in it")

    def _open(self) -> tarfile.TarFile:
        # Plain tars can be sought in, so that rows done already are passed over unread.
        if self.name.lower().endswith(".tar"):
            with open(self.name, "rb") as file:
                if file.read(2) not in (b"\x1f\x8b", b"BZ", b"\xfd7"):
                    return tarfile.open(self.name, "r:", tarinfo=_Member)
        return tarfile.open(self.name, "r|*", tarinfo=_Member)

    def _wanted(self, member: tarfile.TarInfo) -> bool:
        base = os.path.basename(member.name).lower()
        if not member.isfile() or base.startswith("."):
            return False
        if self._extension is not None:
            return base.partition(".")[2] == self._extension.lower().lstrip(".")
        return base.endswith((*IMAGE_SUFFIXES, _NPY))

    def _rows(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Entry]:
        file = archive.extractfile(member)
        data = file.read() if file else b""
        if len(data) < member.size:
            raise EOFError("it ends in the middle of a member")
        row_id = f"{self.name}/{member.name}"
        if member.name.lower().endswith(_NPY):
            yield from _array_rows(row_id, data)
        else:
            yield Item(id=row_id, data=data, size=len(data))


def _array_rows(row_id: str, data: bytes) -> Iterator[Entry]:
    try:
        with NPY_HEADER_LOCK:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        check_pixels(array.shape)
    except InputError as error:
        yield Skipped(id=row_id, reason=error.message)
    except Exception as error:  # numpy lets its parser's own errors through
        yield Skipped(id=row_id, reason=f"cannot be read as .npy ({error})")
    else:
        if array.ndim == 3:
            yield pixel_item(row_id, array)
        else:
            for row, pixels in enumerate(array):
                yield pixel_item(f"{row_id}#{row}", pixels)


@contextmanager
def _faults_named() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f"cannot be read (any further) as a tar file ({error})") from None
