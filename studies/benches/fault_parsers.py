"""Every parser of a store's bytes as a function of bytes, for fuzzers: it returns, or raises a BevcaskError.

Property tests feed them (`tests/cache/test_fuzz.py`), and so does a coverage-guided fuzzer where atheris is installed:

    pip install atheris && python -m studies.benches.fault_parsers manifest -max_total_time=300
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cache.bev import BevEncoding
from cache.codecs import decompress
from cache.commit import read_plan
from cache.coverage import Coverage
from cache.errors import BevcaskError
from cache.fields import FieldSpec
from cache.file_stream import FileStream
from cache.files import canonical_json, parse_json, seal
from cache.grid import BevGrid
from cache.manifest import MANIFEST, PLAN, Manifest
from cache.npy import decode_npy
from cache.plan import Format, ShardPlan
from cache.records import record_problem
from cache.verify_tar import check_tar, read_header
from cache.verify_zarr import check_zarr_json, check_zarr_shard

Parser = Callable[[bytes], Any]
SENSELESS = (KeyError, TypeError, ValueError, AttributeError, BevcaskError)  # what `record_problem` says it raises
LIMIT = 1 << 16
SPEC = FieldSpec("scores", "npy.zstd", "float32", ("N", "3"))
LAYOUT = Format("zarr", 2, {"N": 6})


class BytesRoot:
    """A root in memory with given objects, as far as parsers need one."""

    url = "bytes"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes:
        """The whole object."""
        if name not in self._objects:
            raise FileNotFoundError(name)
        return self._objects[name]

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """A part of it."""
        return self.read(name)[start : start + length]

    def size(self, name: str) -> int | None:
        """Its bytes."""
        return len(self._objects[name]) if name in self._objects else None


def parse_manifest(data: bytes) -> Any:
    """manifest.json as it is."""
    return Manifest.read(BytesRoot({MANIFEST: data}))  # type: ignore[arg-type]


def parse_sealed_manifest(data: bytes) -> Any:
    """manifest.json with its seal made to agree, which lets the fuzzer past it."""
    values = parse_json(data, MANIFEST, "JSON")
    if not isinstance(values, dict):
        return None
    values.pop("digest", None)
    try:
        sealed = canonical_json(seal(values))
    except (ValueError, RecursionError):  # NaN, or too deep: no seal to make
        return None
    return parse_manifest(sealed)


def parse_plan(data: bytes) -> Any:
    """plan.json."""
    return read_plan(BytesRoot({PLAN: data}))  # type: ignore[arg-type]


def parse_record(data: bytes) -> Any:
    """A shard's record, its seal made to agree where it is an object."""
    values = parse_json(data, "record", "JSON")
    if isinstance(values, dict):
        values.pop("digest", None)
        try:
            data = canonical_json(seal(values))
        except (ValueError, RecursionError):
            return None
    try:
        return record_problem(values, data, ShardPlan(0, LAYOUT, (SPEC,), ("0" * 32,), "x"), ("N",), None)
    except SENSELESS:
        return "makes no sense"


def parse_npy(data: bytes) -> Any:
    """A .npy of any shape."""
    return decode_npy(data, "npy")


def parse_zstd(data: bytes) -> Any:
    """A zstd frame, which never grows beyond the limit."""
    out = decompress("zstd", data, LIMIT, "zstd")
    assert len(out) <= LIMIT
    return out


def parse_member(data: bytes) -> Any:
    """A tar member's array: zstd, .npy header, declared shape."""
    return SPEC.decode(data, {"N": 4}, "member")


def parse_chunk(data: bytes) -> Any:
    """A Zarr chunk's array."""
    return SPEC.decode_padded(data, {"N": 4}, LAYOUT.capacity, "chunk")


def parse_tar_header(data: bytes) -> Any:
    """One block of a tar."""
    try:
        name, size = read_header(data[:512].ljust(512, b"\0"))
    except ValueError:
        return None
    assert size >= 0
    return name, size


def parse_tar(data: bytes) -> Any:
    """A whole tar shard, against an index of one member."""
    told: list[str] = []
    frame = {"token": "0" * 32, "sizes": {"N": 4}, "members": {"scores": [512, 128, 0]}}
    check_tar(_stream(data), [frame], {"scores": SPEC}, lambda found, expected: told.append(found))
    return told


def parse_zarr_shard(data: bytes) -> Any:
    """A whole Zarr shard, against an index of one frame."""
    told: list[str] = []
    frame = {"token": "0" * 32, "sizes": {"N": 4}, "members": {"scores": [0, 24, 0]}}
    check_zarr_shard(_stream(data), SPEC, [frame], LAYOUT, lambda found, expected: told.append(found))
    return told


def parse_zarr_json(data: bytes) -> Any:
    """A zarr.json."""
    return check_zarr_json({"data.zarr/scores/zarr.json": data, "data.zarr/x": data}, [SPEC], LAYOUT, 1)


def parse_headers(data: bytes) -> Any:
    """A teacher store's header: coverage, BEV encoding and grid, each by itself."""
    values = parse_json(data, "header", "JSON")
    out: list[Any] = []
    for parser in (Coverage.from_header, BevEncoding.from_dict, BevGrid.from_dict):
        try:
            out.append(parser(values))  # type: ignore[operator]
        except BevcaskError as error:
            out.append(error)
    return out


def _stream(data: bytes) -> FileStream:
    return FileStream(BytesRoot({"file": data}), "file", len(data), lambda count: None)  # type: ignore[arg-type]


PARSERS: dict[str, Parser] = {
    "manifest": parse_manifest,
    "sealed-manifest": parse_sealed_manifest,
    "plan": parse_plan,
    "record": parse_record,
    "npy": parse_npy,
    "zstd": parse_zstd,
    "member": parse_member,
    "chunk": parse_chunk,
    "tar-header": parse_tar_header,
    "tar": parse_tar,
    "zarr-shard": parse_zarr_shard,
    "zarr-json": parse_zarr_json,
    "headers": parse_headers,
}


def examples(name: str) -> list[bytes]:
    """A few inputs that the parser takes, for a fuzzer to begin with."""
    from studies.benches.fault_stores import small_stores

    plans = [store.plan for store in small_stores().values()]
    if name == "plan":
        return [canonical_json(plan.to_dict()) for plan in plans]
    if name in ("manifest", "sealed-manifest", "record", "tar", "zarr-shard", "zarr-json", "tar-header"):
        return _written(name)
    if name == "headers":
        return [json.dumps(plans[1].header[key]).encode() for key in ("coverage", "bev", "grid")]
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    if name == "npy":
        return [FieldSpec("x", "npy", "float32", ("N", "3")).encode(values)]
    member, chunk = SPEC.encode(values), SPEC.encode_padded(values, LAYOUT.capacity)
    return {"member": [member], "chunk": [chunk]}.get(name, [member, chunk])


def _written(name: str) -> list[bytes]:
    """Files of that kind out of small stores."""
    import tempfile
    from pathlib import Path

    from studies.benches.fault_stores import small_stores

    pattern = {
        "record": "records/*.json",
        "tar": "shards/*.tar",
        "tar-header": "shards/*.tar",
        "zarr-shard": "data.zarr/scores/c/*/*",
        "zarr-json": "data.zarr/*/zarr.json",
    }.get(name, MANIFEST)
    with tempfile.TemporaryDirectory() as folder:
        for store in small_stores().values():
            store.write(Path(folder) / store.name)
        found = [path.read_bytes() for path in sorted(Path(folder).glob(f"*/{pattern}"))]
    return [data[:512] for data in found] if name == "tar-header" else found


def fuzz(name: str, arguments: list[str]) -> None:
    """Runs atheris (libFuzzer's options) on one parser; ends with a traceback at the first error that is not ours."""
    import tempfile
    from pathlib import Path

    import atheris

    seeds = examples(name)
    atheris.instrument_all()
    parser = PARSERS[name]

    def one(data: bytes) -> None:
        try:
            parser(data)
        except BevcaskError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(seeds):
            (Path(corpus) / str(i)).write_bytes(data)
        atheris.Setup([sys.argv[0], corpus, *arguments], one)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2:])
