"""The manifest: an exact round trip, and everything in it that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec
from cache.files import file_sha256
from cache.manifest import Manifest, Scene, Shard
from tests.cache.stores import forge_manifest

MANIFEST = Manifest(
    kind="teacher",
    identity={"dataset_version": "v1.0-mini", "classes": ["car", "bus"]},
    header={"grid": {"x_min": -51.2}, "weight": 0.1 + 0.2, "none": None},
    fields=(FieldSpec("labels", "npy", "int32", ("N",), "class id", "labels"), FieldSpec("meta", "json")),
    scenes=(Scene("a" * 32, "scene-0001", "train", "Nacht, Regen: ü"),),
    shards=(Shard("shards/00000.tar", 2**40, "0" * 64, 7),),
    index={"token.npy": {"size": 128, "sha256": "1" * 64}},
    quarantined=({"token": "b" * 32, "reason": "a.bin: truncated"},),
)


def test_it_reads_back_as_written_with_the_digest_of_its_file(tmp_path: Path) -> None:
    written = MANIFEST.write(tmp_path)
    again = Manifest.read(tmp_path)
    assert again == written == MANIFEST
    assert again.digest == written.digest == file_sha256(tmp_path / "manifest.json")


def test_equal_manifests_have_equal_bytes(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path / "a")
    Manifest(**{**MANIFEST.__dict__, "header": dict(reversed(MANIFEST.header.items()))}).write(tmp_path / "b")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_no_store_and_an_unfinished_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store \(no manifest\.json\); run cache-frames"):
        Manifest.read(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no store \(no manifest\.json\)"):
        Manifest.read(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(StoreError, match=r"an unfinished caching run \(no manifest\.json\)"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '"manifest"', "3", "{}", "\x00", "[" * 100_000, '{"format": NaN}']
)
def test_what_is_no_manifest_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("version", None), ("format", "zarr")])
def test_another_format_or_version_names_both_and_the_remedy(tmp_path: Path, key: str, value: Any) -> None:
    MANIFEST.write(tmp_path)
    forge_manifest(tmp_path, lambda values: values.update({key: value}))
    with pytest.raises(StoreError, match=rf"{value}.*this reader knows bevcask version 1; install the release"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("kind", ["student", "", None, ["frames"], {"frames": 1}])
def test_an_unknown_kind_is_corrupt(tmp_path: Path, kind: Any) -> None:
    MANIFEST.write(tmp_path)
    forge_manifest(tmp_path, lambda values: values.update(kind=kind))
    with pytest.raises(CorruptError, match="kind"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../shards/00000.tar",
        "shards/../../00000.tar",
        "shards/..",
        "shards/.",
        "shards",
        "shards/",
        "/etc/passwd",
        "/shards/00000.tar",
        "00000.tar",
        "other/00000.tar",
        "shards/deep/00000.tar",
        "shards\\00000.tar",
        "shards/a\\..\\b",
        "shards/a\0.tar",
        "",
        "..",
        "s3://bucket/00000.tar",
    ],
)
def test_a_shard_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    MANIFEST.write(tmp_path)
    forge_manifest(tmp_path, lambda values: values["shards"][0].update(name=name))
    with pytest.raises(CorruptError, match="not of the form shards/NAME; the manifest is damaged or forged"):
        Manifest.read(tmp_path)


TOP = ["format", "version", "kind", "identity", "header", "fields", "scenes", "shards", "index", "quarantined"]


@pytest.mark.parametrize("key", TOP)
@pytest.mark.parametrize("value", ["absent", None, 5, "text", [5], [[]], {"a": 5}])
def test_each_part_missing_or_of_another_shape_is_one_clear_error(tmp_path: Path, key: str, value: Any) -> None:
    MANIFEST.write(tmp_path)
    forge_manifest(tmp_path, lambda values: values.pop(key) if value == "absent" else values.update({key: value}))
    if key in ("identity", "header") and isinstance(value, dict):
        assert getattr(Manifest.read(tmp_path), key) == value
        return
    with pytest.raises(StoreError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["fields"].append(values["fields"][0]),
        lambda values: values["fields"][0].update(name="../x"),
        lambda values: values["fields"][0].update(ext="pkl"),
        lambda values: values["fields"][0].update(dtype="object"),
        lambda values: values["fields"][0].pop("shape"),
        lambda values: values["scenes"][0].pop("split"),
        lambda values: values["scenes"][0].update(location="boston"),
        lambda values: values["shards"][0].update(size="many"),
        lambda values: values["shards"][0].pop("frames"),
        lambda values: values["index"].update({"token.npy": 5}),
        lambda values: values["index"]["token.npy"].pop("sha256"),
    ],
)
def test_a_part_of_a_part_that_makes_no_sense_is_corrupt(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    MANIFEST.write(tmp_path)
    forge_manifest(tmp_path, change)
    with pytest.raises(CorruptError, match=r"manifest\.json: "):
        Manifest.read(tmp_path)


def test_an_edit_by_hand_is_noticed(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"train"', '"val"'))
    with pytest.raises(CorruptError, match="does not match its own digest"):
        Manifest.read(tmp_path)


def test_layout_alone_is_not_an_edit(tmp_path: Path) -> None:
    """A tool that re-indents the file changes no value; its digest, which names the bytes, does change."""
    digest = MANIFEST.write(tmp_path).digest
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert Manifest.read(tmp_path) == MANIFEST and Manifest.read(tmp_path).digest != digest
