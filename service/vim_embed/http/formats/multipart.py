"""The files of a `multipart/form-data` body, as views of it: nothing is copied or put on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vim_embed.errors import InvalidInput, MalformedRequest, PayloadTooLarge
from vim_embed.http.body.workspace import Workspace

_HEADERS_BYTES = 16 * 1024  # of one part
_EPILOGUE_BYTES = 64  # blank ones, behind the last boundary
_BOUNDARY = re.compile(r";\s*boundary\s*=", re.IGNORECASE)  # no boundary holds a semicolon
_DISPOSITION, _TRANSFER = b"content-disposition", b"content-transfer-encoding"
_PLAIN = (b"", b"binary", b"8bit", b"7bit")
_SHOWN = 80  # letters of a name


@dataclass
class _Part:
    """What the parser told of one part. begin, end: of its content."""

    headers: list[tuple[bytearray, bytearray]] = field(default_factory=list)
    begin: int = 0
    end: int = 0
    told: int = 0

    @property
    def options(self) -> dict[bytes, bytes]:
        """Of its Content-Disposition: `name`, and `filename` if it is a file."""
        return dict(parse_options_header(self.header(_DISPOSITION))[1])

    def header(self, wanted: bytes) -> bytes:
        """The first of this name, in small letters; empty where there is none."""
        found = (value for name, value in self.headers if bytes(name).lower() == wanted)
        return bytes(next(found, b""))


class _Reader:
    """Notes where the parts are."""

    def __init__(self, most_files: int) -> None:
        self.files: list[tuple[str, int, int]] = []
        self.ended = False
        self._most_files = most_files
        self._part = _Part()
        self._parts = 0
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
        self._parts += 1

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
        options = part.options
        if b"filename" not in options:
            # Leaving it out in silence would give the images behind it the rows of others.
            name = _readable(options.get(b"name", b""))
            raise MalformedRequest(
                f"part {self._parts} of the form ({name!r}) has no file name, so it is no "
                'image: send each image with a file name (filename="a.png", and not filename*), '
                "and options as parameters of the URL (?pooling=cls)"
            )
        name = _readable(options[b"filename"])
        coding = part.header(_TRANSFER).strip().lower()
        if coding not in _PLAIN:
            raise MalformedRequest(
                f"the part {name!r} has the Content-Transfer-Encoding {_readable(coding)!r}: send "
                "its bytes as they are, without this header"
            )
        if len(self.files) == self._most_files:
            raise PayloadTooLarge(f"more than {self._most_files} images in one request: send fewer")
        if part.told != part.end - part.begin:
            raise MalformedRequest(f"the part {name!r} cannot be read in one piece")
        self.files.append((name, part.begin, part.end))

    def _all(self) -> None:
        self.ended = True


def read_files(
    body: memoryview, content_type: str, most_files: int, workspace: Workspace
) -> list[tuple[str, memoryview]]:
    """Name and content of each file, in order. Raises ServiceError."""
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if len(_BOUNDARY.findall(content_type)) > 1:
        raise MalformedRequest("the Content-Type names its boundary twice: which one is meant?")
    if not boundary:
        raise MalformedRequest("the multipart body cannot be read: Content-Type has no boundary")
    reader = _Reader(most_files)
    with workspace.working(len(body)):
        try:
            parser = MultipartParser(boundary, reader.callbacks)  # type: ignore[arg-type]
            raw = bytes(body)
            parser.write(raw)  # in one piece, so that what it tells are places in the body
            parser.finalize()
            _check_end(raw, b"\r\n--" + boundary + b"--")
        except (FormParserError, ValueError) as error:
            raise MalformedRequest(
                f"the multipart body cannot be read ({error}): its lines end with CRLF, and its "
                "boundary is the one of Content-Type; `curl -F images=@a.png`, or an HTTP library, "
                "writes both"
            ) from error
    if not reader.ended:
        raise MalformedRequest("the multipart body is cut short: its last boundary is missing")
    if not reader.files:
        raise InvalidInput("the form holds no file: attach one image per part, with a file name")
    return [(name, body[begin:end]) for name, begin, end in reader.files]


def _readable(name: bytes) -> str:
    """A name as messages show it: short, and without what would move a terminal's cursor."""
    text = name.decode(errors="replace")
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _check_end(body: bytes, last_boundary: bytes) -> None:
    """Raise MalformedRequest for bytes behind the form, such as a second one: nobody reads them.

    The first of these boundaries ends the form: no part's content holds one.
    """
    at = body.find(last_boundary)
    end = at + len(last_boundary)
    rest = body[end : end + _EPILOGUE_BYTES + 1] if at >= 0 else b""
    if rest.strip() or len(rest) > _EPILOGUE_BYTES:
        raise MalformedRequest(
            "other bytes follow the form's last boundary: send all images as parts of one form"
        )
