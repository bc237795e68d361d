"""The files of a `multipart/form-data` body, as views of it: nothing is copied or put on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vim_embed.errors import InvalidInput, MalformedRequest, PayloadTooLarge
from vim_embed.http.body.workspace import Workspace

_FIELDS = 16  # parts that are no files
_HEADERS_BYTES = 16 * 1024  # of one part
_DISPOSITION = b"content-disposition"


@dataclass
class _Part:
    """What the parser told of one part. begin, end: of its content."""

    headers: list[tuple[bytearray, bytearray]] = field(default_factory=list)
    begin: int = 0
    end: int = 0
    told: int = 0

    @property
    def file_name(self) -> str | None:
        """None for a part that is no file."""
        for name, value in self.headers:
            if bytes(name).lower() == _DISPOSITION:
                _, options = parse_options_header(bytes(value))
                if b"filename" in options:
                    return options[b"filename"].decode(errors="replace")
        return None


class _Reader:
    """Notes where the parts are."""

    def __init__(self, most_files: int) -> None:
        self.files: list[tuple[str, int, int]] = []
        self.ended = False
        self._most_files = most_files
        self._fields = 0
        self._part = _Part()
        self._of_headers = 0

    @property
    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_begin": lambda: self._part.headers.append((bytearray(), bytearray())),
            "on_header_field": lambda data, start, end: self._header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._header(1, data[start:end]),
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def _begin(self) -> None:
        self._part, self._of_headers = _Part(), 0

    def _header(self, which: int, data: bytes) -> None:
        self._of_headers += len(data)
        if self._of_headers > _HEADERS_BYTES:
            raise MalformedRequest(f"a part's headers have over {_HEADERS_BYTES} bytes")
        self._part.headers[-1][which].extend(data)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if not part.told:
            part.begin = start
        part.end, part.told = end, part.told + end - start

    def _end(self) -> None:
        part = self._part
        name = part.file_name
        if name is None:
            self._fields += 1
            if self._fields > _FIELDS:
                raise MalformedRequest(f"the form has over {_FIELDS} parts that are no files")
            return
        if len(self.files) == self._most_files:
            raise PayloadTooLarge(f"more than {self._most_files} images in one request: send fewer")
        if part.told != part.end - part.begin:
            raise MalformedRequest(f"the part {name[:80]!r} cannot be read in one piece")
        self.files.append((name, part.begin, part.end))

    def _all(self) -> None:
        self.ended = True


def read_files(
    body: memoryview, content_type: str, most_files: int, workspace: Workspace
) -> list[tuple[str, memoryview]]:
    """Name and content of each file, in order. Raises ServiceError."""
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedRequest("the multipart body cannot be read: Content-Type has no boundary")
    reader = _Reader(most_files)
    with workspace.working(len(body)):
        try:
            parser = MultipartParser(boundary, reader.callbacks)  # type: ignore[arg-type]
            parser.write(bytes(body))  # in one piece, so that what it tells are places in the body
            parser.finalize()
        except (FormParserError, ValueError) as error:
            raise MalformedRequest(f"the multipart body cannot be read ({error})") from error
    if not reader.ended:
        raise MalformedRequest("the multipart body is cut short: its last boundary is missing")
    if not reader.files:
        raise InvalidInput("the form holds no file: attach one image per part, with a file name")
    return [(name, body[begin:end]) for name, begin, end in reader.files]
