"""Damage that disks, copies and people do to a store's files, whatever the files are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

Rng = np.random.Generator
Corruption = Callable[[Rng, Path], str | None]


def files_of(folder: Path) -> list[Path]:
    """Every file of a folder, sorted."""
    return sorted(Path(where, name) for where, _, names in os.walk(folder) for name in names)


def pick(rng: Rng, folder: Path, pattern: str = "*") -> Path:
    """A file of a kind chosen first, so that a Zarr store's many small shards do not hide its manifest."""
    files = [path for path in files_of(folder) if path.match(pattern)]
    groups = sorted({path.relative_to(folder).parts[0] for path in files})
    group = groups[rng.integers(len(groups))]
    files = [path for path in files if path.relative_to(folder).parts[0] == group]
    return files[rng.integers(len(files))]


def edit(rng: Rng, folder: Path, change: Callable[[bytearray], None], pattern: str = "*") -> str | None:
    """Changes the bytes of a file; names it, None where nothing changed."""
    path = pick(rng, folder, pattern)
    data = bytearray(path.read_bytes())
    before = bytes(data)
    if not before:
        return None
    change(data)
    path.write_bytes(data)
    return None if data == before else f"{path.relative_to(folder)}"


# --- what disks, copies and people do


def flip_bit(rng: Rng, folder: Path) -> str | None:
    """One bit of one file."""

    def change(data: bytearray) -> None:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))

    return edit(rng, folder, change)


def random_bytes(rng: Rng, folder: Path) -> str | None:
    """Up to 64 bytes of noise over what was there."""

    def change(data: bytearray) -> None:
        at, count = int(rng.integers(len(data))), int(rng.integers(1, 64))
        data[at : at + count] = rng.bytes(len(data[at : at + count]))

    return edit(rng, folder, change)


def zero_page(rng: Rng, folder: Path) -> str | None:
    """A page of zeros, as a disk that lost a write gives."""

    def change(data: bytearray) -> None:
        page = int(rng.choice([64, 512, 4096]))
        at = int(rng.integers(-(-len(data) // page))) * page
        data[at : at + page] = bytes(len(data[at : at + page]))

    return edit(rng, folder, change)


def truncate(rng: Rng, folder: Path) -> str | None:
    """A file cut short, perhaps to nothing."""

    def change(data: bytearray) -> None:
        del data[int(rng.integers(len(data))) :]

    return edit(rng, folder, change)


def append(rng: Rng, folder: Path) -> str | None:
    """Bytes behind the end."""

    def change(data: bytearray) -> None:
        count = int(rng.choice([1, 4, 512, 10240]))
        data.extend(bytes(count) if rng.integers(2) else rng.bytes(count))

    return edit(rng, folder, change)


def shift(rng: Rng, folder: Path) -> str | None:
    """Bytes put in or taken out in the middle."""

    def change(data: bytearray) -> None:
        at, count = int(rng.integers(len(data))), int(rng.integers(1, 32))
        if rng.integers(2):
            data[at:at] = rng.bytes(count)
        else:
            del data[at : at + count]

    return edit(rng, folder, change)


def delete(rng: Rng, folder: Path) -> str | None:
    """A file is gone."""
    path = pick(rng, folder)
    path.unlink()
    return f"{path.relative_to(folder)}"


def swap(rng: Rng, folder: Path) -> str | None:
    """Two files change places."""
    one = pick(rng, folder)
    alike = [path for path in files_of(folder) if path.parts[-2] == one.parts[-2] or rng.integers(3) == 0]
    other = alike[rng.integers(len(alike))]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return None if first == second else f"{one.relative_to(folder)} and {other.relative_to(folder)}"


def copy_over(rng: Rng, folder: Path) -> str | None:
    """A file over another one."""
    one, other = pick(rng, folder), pick(rng, folder)
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    return None if one.read_bytes() == before else f"{other.relative_to(folder)} over {one.relative_to(folder)}"


def extra_file(rng: Rng, folder: Path) -> str | None:
    """A file that nobody asked for."""
    names = (
        "shards/00099.tar", "records/00007.json", "index/extra.npy", "x.partial", "data.zarr/x/c/0/0", ".hidden",
        "manifest.json.1f-0badcafe.partial", "shards/00000.tar.1f-0badcafe.partial", "a\nb", "records/00000.json~",
        "\u202etxt", os.fsdecode(b"\xff\xfe"), "index/token.NPY", "shards/00000 (copy).tar",
    )  # fmt: skip
    path = folder / names[rng.integers(len(names))]
    path.parent.mkdir(parents=True, exist_ok=True)
    source = pick(rng, folder)
    path.write_bytes(b"" if rng.integers(2) else source.read_bytes())
    return f"{path.name!r}"


def grow_sparse(rng: Rng, folder: Path) -> str | None:
    """64 GiB that take no room on the disk."""
    path = pick(rng, folder)
    os.truncate(path, 64 << 30)
    return f"{path.relative_to(folder)}"


def link(rng: Rng, folder: Path) -> str | None:
    """A symbolic link in a file's place: to a copy outside, to an endless device, to itself, to nothing."""
    path = pick(rng, folder)
    outside = folder.with_name(f"{folder.name}-outside")
    shutil.copyfile(path, outside)
    target = (str(outside), "/dev/zero", path.name, "/nonexistent")[rng.integers(4)]
    path.unlink()
    path.symlink_to(target)
    return f"{path.relative_to(folder)} -> {target}"


def link_folder(rng: Rng, folder: Path) -> str | None:
    """A folder of the store moved outside and linked to."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    path = folders[rng.integers(len(folders))]
    outside = folder.with_name(f"{folder.name}-outside")
    shutil.rmtree(outside, ignore_errors=True)
    outside.unlink(missing_ok=True)
    shutil.move(path, outside)
    path.symlink_to(outside)
    return f"{path.name} -> {outside}"


def pipe(rng: Rng, folder: Path) -> str | None:
    """A named pipe, which nobody ever writes to."""
    path = pick(rng, folder)
    path.unlink()
    os.mkfifo(path)
    return f"{path.relative_to(folder)}"


def folder_for_file(rng: Rng, folder: Path) -> str | None:
    """A folder in a file's place."""
    path = pick(rng, folder)
    path.unlink()
    path.mkdir()
    return f"{path.relative_to(folder)}"
