"""Mutations of valid bytes, trees and container formats; all of them from one `Random`."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

_EDGES = (
    0,
    1,
    -1,
    2,
    3,
    127,
    128,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64,
    -(2**63),
)
_TREE_VALUES: tuple[Any, ...] = (
    None, True, False, "", "x" * 300, "\u0000", "\ud800", "é", "NaN", [], {}, [[]], [None], 1e308,
    -1e308, 1e-320, float("nan"), float("inf"), 10**400, "../../etc/passwd", "$(id)", "{}", "[]",
    *_EDGES,
)  # fmt: skip


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """A few edits without regard to what the bytes mean."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        random.choice(_BYTE_EDITS)(random, out)
    return bytes(out[:1_000_000])


def _place(random: Random, out: bytearray) -> int:
    """Somewhere; headers are at the front, so half of the edits are there."""
    end = len(out) if random.random() < 0.5 else min(len(out), 160)
    return random.randrange(end) if end else 0


def _flip(random: Random, out: bytearray) -> None:
    if out:
        out[_place(random, out)] ^= 1 << random.randrange(8)


def _overwrite(random: Random, out: bytearray) -> None:
    value = random.choice(_EDGES)
    size = random.choice((1, 2, 4, 8))
    raw = (value % 2 ** (8 * size)).to_bytes(size, random.choice(("little", "big")))
    place = _place(random, out)
    out[place : place + size] = raw


def _cut(random: Random, out: bytearray) -> None:
    del out[_place(random, out) :]


def _remove(random: Random, out: bytearray) -> None:
    place = _place(random, out)
    del out[place : place + random.choice((1, 2, 8, 64))]


def _insert(random: Random, out: bytearray) -> None:
    place = _place(random, out)
    out[place:place] = random.randbytes(random.choice((1, 2, 8, 64, 1000)))


def _double(random: Random, out: bytearray) -> None:
    place = _place(random, out)
    out[place:place] = out[place : place + random.choice((4, 32, 256))]


_BYTE_EDITS: tuple[Callable[[Random, bytearray], None], ...] = (
    _flip, _overwrite, _cut, _remove, _insert, _double,
)  # fmt: skip


def mutate_tree(random: Random, tree: Any) -> Any:
    """A JSON value with some of its parts replaced, removed, doubled, renamed or nested."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        spots = _spots(tree)
        if not spots:
            return random.choice(_TREE_VALUES)
        _edit(random, *random.choice(spots))
    return tree


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each part; of long lists the first few."""
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)
    elif isinstance(tree, list):
        keys = list(range(min(len(tree), 4)))
    else:
        return []
    return [(tree, key) for key in keys] + [spot for key in keys for spot in _spots(tree[key])]


def _edit(random: Random, container: Any, key: Any) -> None:
    if isinstance(container, list) and key >= len(container):
        return
    if isinstance(container, dict) and key not in container:
        return
    how = random.randrange(6)
    if how == 0:
        del container[key]
    elif how == 1:
        container[key] = [container[key]] * random.choice((1, 2, 50))
    elif how == 2 and isinstance(container, dict):
        container[random.choice(("", "extra", key.upper(), "__metadata__"))] = container.pop(key)
    elif how == 3 and type(container[key]) is int:
        container[key] += random.choice(_EDGES)
    else:
        container[key] = random.choice(_TREE_VALUES)


def to_json(random: Random, tree: Any) -> bytes:
    """The tree as text that Python's own writer would write, or in another encoding."""
    text = json.dumps(tree, ensure_ascii=random.random() < 0.8)
    encoding = (
        "utf-8" if random.random() < 0.95 else random.choice(("utf-16", "utf-32", "utf-8-sig"))
    )
    return text.encode(encoding, "surrogatepass")


def mutate_npy(random: Random, data: bytes) -> bytes:
    """Another header before the same values."""
    size = int.from_bytes(data[8:10], "little")
    header, values = data[10 : 10 + size].decode(), data[10 + size :]
    shape = header[header.index("(") : header.index(")") + 1]
    sides = [
        random.choice((0, 1, 3, 8, -1, 2**31, 2**63, 2**70)) for _ in range(random.randrange(6))
    ]
    swaps = (
        (shape, f"({', '.join(map(str, sides))},)"),
        (shape, random.choice(("()", "3", "(3.0,)", "(True, 3, 8, 8)", "[1, 3, 8, 8]", "('a',)"))),
        ("descr", random.choice(("", "Descr", "descr': '|O', 'x"))),
        ("|u1", random.choice(("|O", "<f4", ">f2", "<i8", "|V8", "<U9", "|S0", "<M8[s]", "x", ""))),
        ("<f4", random.choice(("[('a', '<f4')]", ">f4", "<f8", "<c8", "|b1", "(2,)f4", "<f16"))),
        ("False", random.choice(("True", "None", "1", "__import__('os')", "(" * 500))),
        ("}", random.choice(("", "}}", "} + 1", "," * 9000, ", 'more': 1}", "}#"))),
    )
    old, new = random.choice(swaps)
    text = header.replace(old, new).encode()
    length = len(text) + random.choice((0, 0, 0, 1, -1, 40_000))
    version = random.choice(((1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    width = 2 if version == (1, 0) else 4
    return (
        b"\x93NUMPY" + bytes(version) + (length % 2**16).to_bytes(width, "little") + text + values
    )


def mutate_safetensors(random: Random, data: bytes) -> bytes:
    """Another JSON header before the same values."""
    size = int.from_bytes(data[:8], "little")
    header = mutate_tree(random, json.loads(data[8 : 8 + size]))
    text = json.dumps(header).encode()
    length = len(text) + random.choice((0, 0, 0, 0, 1, -1, 2**40))
    return (length % 2**64).to_bytes(8, "little") + text + data[8 + size :]


def mutate_png(random: Random, data: bytes) -> bytes:
    """Chunks removed, doubled, swapped or rewritten, with right checksums."""
    chunks = _png_chunks(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(chunks))
        kind, content = chunks[place]
        how = random.randrange(5)
        if how == 0 and len(chunks) > 1:
            del chunks[place]
        elif how == 1:
            chunks.insert(place, (kind, content))
        elif how == 2:
            chunks[place] = (kind, mutate_bytes(random, content))
        elif how == 3:
            chunks.insert(
                place, (random.choice(_PNG_KINDS), random.randbytes(random.randrange(40)))
            )
        else:
            sides = (random.choice((0, 1, 8, 2**16, 2**31 - 1)) for _ in range(2))
            more = bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(2)) + bytes(3)
            chunks[0] = (b"IHDR", struct.pack(">II", *sides) + more)
    return data[:8] + b"".join(_png_chunk(kind, content) for kind, content in chunks)


_PNG_KINDS = (
    b"PLTE",
    b"tRNS",
    b"iCCP",
    b"zTXt",
    b"iTXt",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"eXIf",
    b"gAMA",
    b"pHYs",
)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def mutate_jpeg(random: Random, data: bytes) -> bytes:
    """A segment's content rewritten, its length kept right."""
    places = [i for i in range(2, len(data) - 4) if data[i] == 0xFF and 0xC0 <= data[i + 1] <= 0xEF]
    place = random.choice(places)
    size = int.from_bytes(data[place + 2 : place + 4], "big")
    content = mutate_bytes(random, data[place + 4 : place + 2 + size])[:60_000]
    kind = random.choice((data[place + 1], data[place + 1], random.randrange(0xC0, 0xF0)))
    segment = bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content
    return data[:place] + segment + data[place + 2 + size :]


def mutate_tiff(random: Random, data: bytes) -> bytes:
    """Entries of the first directory rewritten: tags, types, counts, offsets."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        entry = start + 2 + 12 * random.randrange(count)
        form, place, limit = random.choice(
            (("H", 0, 2**16), ("H", 2, 14), ("I", 4, 2**32), ("I", 8, 2**32))
        )
        value = random.choice((*_EDGES, random.randrange(limit))) % limit
        struct.pack_into(order + form, out, entry + place, value)
    return bytes(out)


def mutate_fits(random: Random, data: bytes) -> bytes:
    """Other numbers and words in cards, cards that are gone or there twice, HDUs again."""
    blocks = len(data) // 2880
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        cards = [
            at for at in range(0, len(out) - 79, 80)
            if out[at + 8 : at + 9] == b"=" and out[at : at + 8].strip().isalnum()
        ]  # fmt: skip
        if not cards:
            break
        at = random.choice(cards)
        dice = random.random()
        if dice < 0.6:
            value = str(random.choice((*_EDGES, "T", "'X'", "1E400", "-", "-64", "1.5")))
            out[at + 10 : at + 80] = value.rjust(20).ljust(70)[:70].encode()
        elif dice < 0.75:
            out[at : at + 80] = b"COMMENT".ljust(80)
        elif dice < 0.9:
            out[at : at + 80] = out[random.choice(cards) :][:80]
        else:
            begin = 2880 * random.randrange(max(1, blocks))
            out += out[begin:] * random.choice((1, 3, 30))
            del out[200_000:]
    return bytes(out)


def mutate_form(random: Random, data: bytes) -> bytes:
    """Lines of a multipart body removed, doubled, swapped or rewritten."""
    lines = data.split(b"\r\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        place, other = random.randrange(len(lines)), random.randrange(len(lines))
        how = random.randrange(6)
        if how == 0 and len(lines) > 1:
            del lines[place]
        elif how == 1:
            lines.insert(place, lines[place])
        elif how == 2:
            lines[place], lines[other] = lines[other], lines[place]
        elif how == 3:
            lines[place] = mutate_bytes(random, lines[place])
        else:
            lines.insert(place, random.choice(_FORM_LINES))
    return random.choice((b"\r\n", b"\r\n", b"\r\n", b"\n")).join(lines)


_FORM_LINES = (
    b"--boundary",
    b"--boundary--",
    b"",
    b"Content-Type: ",
    b"Content-Length: 99999999999",
    b'Content-Disposition: form-data; name="a"; filename=""',
    b"Content-Disposition: form-data",
    b"Content-Disposition: form-data; name*=utf-8''%ff; filename*=x",
    b"Content-Type: multipart/mixed",
    b'Content-Disposition: form-data; name="' + b"n" * 5000 + b'"',
    b"X: " + b"y" * 20_000,
    b"\0\xff",
    b"Content-Transfer-Encoding: base64",
)


_JSON_PIECES = (
    b"0,", b"-9,", b"1.5,", b"1e3,", b"1e400,", b"123456789012345678901,", b'"",', b'"x",', b"{},",
    b"[],", b"[[]],", b"[0],", b"null,", b"true,", b"NaN,", b'{"a":0},', b'"\\ud83d\\ude00",',
    b'"\xc3\xa9",', b'"\xff",', b"  ", b",", b":", b"[", b"{", b'"', b"]", b"}",
)  # fmt: skip


def json_of_any_shape(random: Random, most: int) -> bytes:
    """Up to `most` bytes of JSON, or nearly: few or many of the same pieces, flat or nested."""
    size = random.choice((20, 2_000, 100_000, most))
    depth = random.choice((0, 0, 1, 2, 4, 40, 2_000))
    pieces = [random.choice(_JSON_PIECES) for _ in range(random.choice((1, 1, 2, 5)))]
    run = b"".join(pieces)
    inner = run * max(1, (size - 2 * depth) // len(run))
    if random.random() < 0.3:
        inner += b'"' + b"x" * random.choice((0, size // 2)) + b'",'
    if random.random() < 0.8:
        inner += random.choice((b"0", b"[]", b"{}", b'""'))
    nested = b"[" * depth + inner + b"]" * depth
    return random.choice(_JSON_FRAMES) % nested


_JSON_FRAMES = (
    b'{"inputs": [%b]}', b'{"inputs": [%b], "dtype": "uint8"}', b"%b", b"[%b]", b'{"a": [%b]}',
    b'{"inputs": {"base64": [%b], "shape": [1], "dtype": "uint8"}}',
    b'{"inputs": {"base64": "AAAA", "shape": [%b], "dtype": "uint8"}}',
    b'{"inputs": [{"name": "pixel_values", "shape": [1, 3, 8, 8], "datatype": "FP32",'
    b' "data": [%b]}]}',
    b'{"inputs": [], "outputs": [%b]}', b'{"inputs": [%b], "inputs": []}',
)  # fmt: skip


def heavy_image(random: Random, sound: bytes, most: int) -> bytes:
    """A small picture with up to `most` bytes of what its reader must go through."""
    size = random.choice((1_000, 100_000, most))
    head, rest = sound[:-20], sound[-20:]
    if sound[:4] == b"\x89PNG":
        kind = random.choice((*_PNG_KINDS, b"tEXt", b"IDAT", b"abCd"))
        content = random.choice(
            (b"", b"a\0b", b"a\0\0" + zlib.compress(bytes(10**6)), bytes(5_000))
        )
        more = _png_chunk(kind, content)
        place = random.choice((8, 33, len(sound) - 12))
        return sound[:place] + more * (size // len(more)) + sound[place:]
    if sound[:2] == b"\xff\xd8":
        marker = random.choice((0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD, 0xFF, 0xD0))
        more = random.choice((bytes((0xFF, marker, 0, 2)), bytes((0xFF, marker)), b"\xff", b"\0"))
        return sound[:2] + more * (size // len(more)) + sound[2:]
    if sound[:3] == b"GIF":
        more = random.choice(
            (b"!\xfe\1x\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0", b"!\xf9\4\0\0\0\0\0")
        )
        return head + more * (size // len(more)) + rest
    if sound[:1] == b"P":
        kind = random.choice((b"P1", b"P2", b"P3", b"P5", b"P6", b"Pf", b"P7"))
        more = random.choice((b"#x\n", b" ", b"1 ", b"255 ", b"#"))
        return kind + b"\n" + more * (size // len(more)) + b"9 9 255\n" + rest
    if sound[:2] == b"BM":
        runs = random.choice((b"\1\1", b"\0\0", b"\0\2\1\1", b"\xff\0"))
        out = bytearray(sound[:54].ljust(54, b"\0") + bytes(1024) + runs * (size // len(runs)))
        struct.pack_into("<HI", out, 28, 8, random.choice((1, 2, 0, 3)))
        return bytes(out)
    return mutate_bytes(random, sound) + random.choice((bytes(size), random.randbytes(size)))


def many_members(random: Random, coded: bytes, empty: bytes) -> bytes:
    """A compressed body with a crowd of empty members before, behind or in its midst."""
    crowd = empty * random.choice((1, 60, 1_000, 30_000))
    return random.choice((crowd + coded, coded + crowd, crowd))
