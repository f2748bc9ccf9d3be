"""Whether a tar shard is what its index says: every member where, as long and named as told, and nothing else in it.

A walk of USTAR headers that extracts nothing, follows no link and needs the memory of one member. Readers go by the
index and never look at a header; stock tools go by the headers alone, so both must tell the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import google_crc32c

from cache.errors import CorruptError
from cache.fields import MAX_ARRAY_BYTES, FieldSpec
from cache.file_stream import FileStream

BLOCK = 512
TAKEN_WHOLE = MAX_ARRAY_BYTES + (1 << 20)  # a longer member is none of ours
Tell = Callable[[str, str], None]  # found, expected


def check_tar(
    stream: FileStream, frames: Sequence[Mapping[str, Any]], fields: Mapping[str, FieldSpec], tell: Tell
) -> None:
    """Walks the shard and tells what differs. frames: as in the shard's record, in order; fields by name."""
    expected = {
        f"{frame['token']}.{fields[name].member}": (frame, fields[name], tuple(location))
        for frame in frames
        for name, location in frame["members"].items()
    }
    seen: dict[str, None] = {}
    ended = False
    while stream.left and not ended:
        at = stream.position
        block = stream.take(BLOCK)
        if not any(block):
            ended = True
            break
        try:
            name, size = read_header(block)
        except ValueError as error:
            tell(f"no member header at byte {at} ({error})", "a plain USTAR header")
            return
        if name not in expected:
            tell(f"member {name!r} at byte {at}", "only members that the index names")
        elif name in seen:
            tell(f"member {name} a second time, at byte {at}", "every member once")
        if size > min(stream.left, TAKEN_WHOLE):
            tell(f"member {name!r} claims {size} bytes", f"at most the {stream.left} that follow")
            return
        data = stream.take(size)
        if name in expected and name not in seen:
            _check_member(name, at + BLOCK, data, *expected[name], tell)
        seen[name] = None
        if any(stream.take(-size % BLOCK)):
            tell(f"bytes behind member {name!r}", "zeros up to the next block")
    if not ended or stream.left < BLOCK or not stream.rest_is_zero():
        tell("no end of archive" if not ended else "bytes behind the end of archive", "blocks of zeros at the end")
    missing = [name for name in expected if name not in seen]
    if missing:
        tell(f"{len(missing)} members are not in it, the first {missing[0]}", f"{len(expected)} members")
    elif list(dict.fromkeys(name[:32] for name in seen if name in expected)) != [
        frame["token"] for frame in frames if frame["members"]
    ]:
        tell("frames in another order", "the index's order")


def _check_member(
    name: str,
    offset: int,
    data: bytes,
    frame: Mapping[str, Any],
    spec: FieldSpec,
    location: tuple[int, int, int],
    tell: Tell,
) -> None:
    if (offset, len(data)) != location[:2]:
        tell(f"{name} at byte {offset}, {len(data)} bytes", f"byte {location[0]}, {location[1]} bytes, as indexed")
    checksum = google_crc32c.value(data)
    if checksum != location[2]:
        tell(f"{name} has crc32c {checksum:08x}", f"{location[2]:08x}, as indexed")
        return
    try:
        spec.decode(data, frame["sizes"], name)
    except CorruptError as error:
        tell(str(error), f"{spec.ext} {spec.dtype} of shape {list(spec.shape)}")


def read_header(block: bytes) -> tuple[str, int]:
    """Name and size of the member that a USTAR header is of.

    ValueError for everything that no shard holds: links, folders, devices, PAX and GNU headers, prefixes, sizes that
    are no octal numbers, a wrong checksum, a name that is not plain ASCII.
    """
    if len(block) != BLOCK or block[257:263] != b"ustar\0":
        raise ValueError("no USTAR magic")
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _octal(block[148:156]) != checksum:
        raise ValueError("checksum differs")
    if block[156:157] != b"0" or any(block[157:257]) or any(block[345:500]):
        raise ValueError(f"type {block[156:157]!r}, link or prefix; shards hold plain files only")
    name, _, behind = block[:100].partition(b"\0")
    if any(behind):
        raise ValueError("bytes behind the name's end")
    try:
        return name.decode("ascii"), _octal(block[124:136])
    except UnicodeDecodeError:
        raise ValueError("a name that is not ASCII") from None


def _octal(text: bytes) -> int:
    digits = text.split(b"\0")[0].strip(b" ")
    if not digits or any(digit not in b"01234567" for digit in digits):
        raise ValueError(f"{text!r} is no octal number")
    return int(digits, 8)
