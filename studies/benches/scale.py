"""How a store's size shows: opening cost in time and memory, and one frame's read, at up to a million frames.

Each size is a real store folder (manifest, plan, index columns, shard files; the frames of a shard share one member's
bytes, so that a million frames fit on a disk) that a fresh process opens with the ordinary reader. The limit of opening
is one pass over the index for its digests: bytes of the columns over the speed of sha256.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import google_crc32c
import numpy as np
from rich.console import Console

from cache.classes import DETECTION_CLASSES
from cache.fields import FieldSpec, letters_of
from cache.files import sha256
from cache.frame import CAMERA_CHANNELS
from cache.frame_fields import frame_fields, frame_identity
from cache.index import FrameIndex, order_of
from cache.manifest import Manifest, Shard, StoredFile
from cache.npy import encode_npy
from cache.plan import Format, Scene
from cache.roots import open_root

ABOUT = "opening a store and reading a frame, from a thousand to a million frames: seconds, MB, microseconds"
FRAMES_PER_SCENE, SCENES_PER_SHARD = 40, 10
SIZES = (1_000, 10_000, 100_000, 1_000_000)
READS = 2_000

_MEASURE = """
import json, random, sys, time
from cache.store import Store
from studies.benches.resident import peak_resident
start = time.perf_counter()
store = Store(sys.argv[1])
opened = time.perf_counter() - start
memory = peak_resident()  # of the whole process
rng = random.Random(0)
tokens = [store.token(rng.randrange(len(store))) for _ in range(int(sys.argv[2]))]
def median_us():
    times = []
    for token in tokens:
        start = time.perf_counter()
        store.read(store.row_of(token), "gt_boxes")
        times.append(time.perf_counter() - start)
    return 1e6 * sorted(times)[len(times) // 2]
first, again = median_us(), median_us()
print(json.dumps({"open_s": opened, "open_mb": memory / 2**20, "first_read_us": first, "read_us": again}))
"""


def run(
    work: Path, console: Console, *, sizes: list[int] | None = None, repeats: int = 5, reads: int = READS
) -> dict[str, Any]:
    """Medians over `repeats` fresh processes a size. A read is that of a random frame by its token: `first_read_us`
    when the process first meets it (opening its shard's file, cold pages of the index), `read_us` from then on.

    open_growth: the largest size's opening time over what the second largest's would grow to in proportion;
    read_growth: a read at the largest size over one at the smallest.
    """
    rows = []
    for frames in sizes or SIZES:
        root = work / f"store-{frames}"
        if not (root / "manifest.json").is_file():
            write_large_store(root, frames)
        seen = [_measured(root, reads) for _ in range(repeats)]
        row: dict[str, Any] = {name: median(run[name] for run in seen) for name in seen[0]}
        index_bytes = sum(path.stat().st_size for path in (root / "index").iterdir())
        row |= {"frames": frames, "index_mb": index_bytes / 2**20, "sha256_s": _sha256_seconds(index_bytes)}
        console.print(
            f"{frames:>9,} frames: opens in {row['open_s']:.3f} s, process of {row['open_mb']:.0f} MB, a read "
            f"{row['read_us']:.1f} us, the first time {row['first_read_us']:.1f} us; sha256 of its "
            f"{row['index_mb']:.0f} MB index alone {row['sha256_s']:.3f} s"
        )
        rows.append(row)
    last, before = rows[-1], rows[-2] if len(rows) > 1 else rows[-1]
    proportional = before["open_s"] * last["frames"] / before["frames"]
    return {
        "sizes": rows,
        "open_s": last["open_s"],
        "open_mb": last["open_mb"],
        "open_growth": last["open_s"] / proportional,
        "read_growth": last["read_us"] / rows[0]["read_us"],
    }


def write_large_store(root: Path, frames: int) -> None:
    """A frame store of `frames` labelled frames, all with six cameras' columns, one of whose fields has bytes."""
    fields = frame_fields(CAMERA_CHANNELS, points=True)
    scenes = -(-frames // FRAMES_PER_SCENE)
    shards = -(-scenes // SCENES_PER_SHARD)
    boxes = encode_npy(np.arange(36 * 12, dtype=np.float64).reshape(36, 12))
    place = open_root(root)
    shard_of = np.minimum(np.arange(frames) // (FRAMES_PER_SCENE * SCENES_PER_SHARD), shards - 1).astype(np.uint32)
    counts = np.bincount(shard_of, minlength=shards)
    files = []
    for shard in range(shards):
        with place.write(f"shards/{shard:05d}.tar") as file:
            file.write(boxes)
        files.append(StoredFile(f"shards/{shard:05d}.tar", len(boxes), sha256(boxes)))
    with place.write("plan.json") as file:
        file.write(b"{}\n")
    index = _index(frames, fields, shard_of, boxes)
    Manifest(
        kind="frames",
        format=Format(),
        identity=frame_identity("v1.0-large", DETECTION_CLASSES),
        header={"annotated": True, "cameras": list(CAMERA_CHANNELS), "image_scale": 1.0, "points": True, "sweeps": 9},
        fields=fields,
        scenes=tuple(Scene(f"{i:032x}", f"scene-{i:06d}", "train") for i in range(scenes)),
        shards=tuple(Shard(int(counts[i]), (files[i],)) for i in range(shards)),
        index=index.write(place),
        plan=StoredFile("plan.json", 3, sha256(b"{}\n")),
    ).write(place)


def _index(frames: int, fields: tuple[FieldSpec, ...], shard_of: np.ndarray, boxes: bytes) -> FrameIndex:
    rng = np.random.default_rng(0)
    token = rng.integers(0, 256, (frames, 16), dtype=np.uint8)
    position = [spec.name for spec in fields].index("gt_boxes")
    length = np.zeros((frames, len(fields)), np.uint32)
    crc = np.zeros_like(length)
    length[:, position], crc[:, position] = len(boxes), google_crc32c.value(boxes)
    sizes = np.zeros((frames, len(letters_of(fields))), np.uint32)
    sizes[:, letters_of(fields).index("N")] = 36
    return FrameIndex(
        token=token,
        order=order_of(token),
        digest=rng.integers(0, 256, (frames, 8), dtype=np.uint8),
        scene=(np.arange(frames) // FRAMES_PER_SCENE).astype(np.uint32),
        timestamp_us=np.arange(frames, dtype=np.int64) * 500_000,
        kind=np.zeros(frames, np.uint8),
        class_counts=rng.integers(0, 9, (frames, len(DETECTION_CLASSES))).astype(np.uint16),
        shard=shard_of,
        sizes=sizes,
        offset=np.zeros((frames, len(fields)), np.uint64),
        length=length,
        crc32c=crc,
    )


def _measured(root: Path, reads: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(root), str(reads)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    return dict(json.loads(done.stdout))


def _sha256_seconds(size: int) -> float:
    """Time of the digest alone over as many bytes in memory."""
    data = bytes(size)
    start = time.perf_counter()
    sha256(data)
    return time.perf_counter() - start
