"""Rows of tar files and webdataset shards, streamed in the order of their members."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tarfile import EmptyHeaderError, InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import Self

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import (
    Description,
    Entry,
    FileReader,
    ImageReader,
    Reader,
    Skipped,
    readable,
)
from vim_embed_client.errors import InputError
from vim_embed_pixels.names import is_auxiliary

# The reader of a member by its name, or None for members that are no images.
OpenMember = Callable[[Content, ReadOptions], Reader | None]

# What webdataset keeps beside an image of a sample, and archives beside their files.
_LABELS = frozenset({
    ".cls", ".cls2", ".json", ".jsonl", ".txt", ".csv", ".tsv", ".md", ".id", ".index", ".key",
    ".yaml", ".yml", ".xml", ".label", ".meta",
})  # fmt: skip
_LARGEST_SPARSE = 1 << 28
_LINKS_OF_LINKS = 8


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
    """The images, arrays, tables and FITS files in a tar file.

    Labels are passed over as what they are; members of other kinds are counted.

    With the option `column`, as webdataset splits `key.ext` at the first dot of the name
    (`left.png`), only such members are rows. Ids are `shard.tar/member`, and what the member's
    own reader adds.
    """

    def __init__(self, content: Content, options: ReadOptions, open_member: OpenMember) -> None:
        super().__init__(content)
        self._options, self._open_member = options, open_member

    def describe(self) -> Description:
        """Of its members: the options that have an effect on one of them at least."""
        given, found = self._options.given(), {"--column"}
        with self._archive() as archive:
            for member in self._members(archive):
                reader = self._reader(archive, member) if self._wanted(member) else None
                if reader is not None:
                    found |= _effective(reader)
                if given <= found:
                    break
        return Description(options=frozenset(found))

    def read(self, start: int) -> Iterator[Entry]:
        passed: Counter[str] = Counter()
        names: set[int] = set()
        number = 0
        with self._archive() as archive:
            for member in self._members(archive):
                if not self._wanted(member):
                    passed[_ending(member.name)] += self._options.column is None
                    continue
                for entry in self._entries(archive, member, names, skip=number < start):
                    number += 1
                    if number > start:
                        yield entry
        others = ", ".join(f"{ending} {count}" for ending, count in passed.most_common(5) if count)
        if not number:
            wanted = f".{self._options.column} files" if self._options.column else "images"
            raise InputError(f"there are no {wanted} in it{others and f', but {others}'}")
        if others and number >= start and passed.keys() - _LABELS:
            reason = f"members that are no images were passed over: {others}"
            yield Skipped(id=readable(self.name), reason=reason, fault=False)

    @contextmanager
    def _archive(self) -> Iterator[tarfile.TarFile]:
        # Plain tars can be sought in, so that rows done already are passed over unread.
        mode = "r|" if self.content.packed else "r:"
        with (
            self.content.open() as file,
            tarfile.open(fileobj=file, mode=mode, tarinfo=_Member) as archive,  # type: ignore[call-overload]
        ):
            yield archive

    def _members(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        while member := archive.next():
            base = posixpath.basename(member.name)
            if not base.startswith(".") and (member.isfile() or member.islnk() or member.issym()):
                yield member
            archive.members.clear()  # type: ignore[attr-defined]  # or the list grows

    def _wanted(self, member: tarfile.TarInfo) -> bool:
        base = posixpath.basename(member.name).lower()
        if self._options.column is not None:
            return base.partition(".")[2] == self._options.column.lower().lstrip(".")
        return self._open_member(Content(member.name), self._options) is not None

    def _entries(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, names: set[int], *, skip: bool
    ) -> Iterator[Entry]:
        row_id = f"{readable(self.name)}/{readable(member.name)}"
        again = hash(member.name) in names
        names.add(hash(member.name))
        if again:
            yield Skipped(id=row_id, reason="another member of this name comes before it")
        elif self._options.column is None and is_auxiliary(posixpath.basename(member.name)):
            reason = "by its name a mask, error or weight (--column takes it)"
            yield Skipped(id=row_id, reason=reason, fault=False)
        else:
            try:
                yield from self._rows(archive, member, row_id, skip=skip)
            except InputError as error:
                yield Skipped(id=row_id, reason=error.message)

    def _rows(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, row_id: str, *, skip: bool
    ) -> Iterator[Entry]:
        reader = self._reader(archive, member, unread=skip)
        if reader is None:
            raise InputError("it is no image, and no file of images that is read here")
        yield from reader.read(0)

    def _reader(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, *, unread: bool = False
    ) -> Reader | None:
        """Of a member, whose bytes stay unread where an image of it is passed by anyway."""
        name = f"{self.name}/{member.name}"
        known = self._open_member(Content(name), self._options)
        if unread and isinstance(known, ImageReader):
            return self._open_member(Content(name, data=b"passed by"), self._options)
        data = self._data(archive, member)
        return self._open_member(Content(name, data=data), self._options)

    def _data(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        if member.islnk() or member.issym():
            return self._linked(member)
        if member.issparse() and member.size > _LARGEST_SPARSE:
            raise InputError(f"it is sparse, and {member.size:,} bytes when unpacked")
        file = archive.extractfile(member)
        data = _all(file.read, member.size) if file else b""
        if len(data) < member.size:
            raise ReadError("it ends in the middle of a member")
        return data

    def _linked(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of what a link leads to, in a second way through the archive."""
        target = _target(member)
        for _ in range(_LINKS_OF_LINKS):
            with self._archive() as archive:
                for other in self._members(archive):
                    if posixpath.normpath(other.name) == target and not other.linkname:
                        return self._data(archive, other)
                    if posixpath.normpath(other.name) == target:
                        target = _target(other)
                        break
                else:
                    break
        raise InputError(f"it is a link to {member.linkname}, which is not in the archive")


def _effective(reader: Reader) -> frozenset[str]:
    try:
        return reader.describe().options
    except InputError:  # nobody knows
        return frozenset()


def _target(link: tarfile.TarInfo) -> str:
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _all(read: Callable[[int], bytes], size: int) -> bytes:
    """`size` bytes or fewer; takes no more memory than there are, whatever a header claims."""
    pieces = []
    while size > 0 and (piece := read(min(size, 1 << 24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"
