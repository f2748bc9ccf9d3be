"""The manifest: an exact round trip, and everything in it that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import manifest as manifest_module
from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec
from cache.files import file_sha256
from cache.manifest import Manifest, Shard, StoredFile
from cache.plan import Format, Scene
from cache.roots import open_root
from tests.cache.stores import forge_manifest

TAR = StoredFile("shards/00000.tar", 2**40, "0" * 64)
VALUES: dict[str, Any] = {
    "kind": "teacher",
    "format": Format(),
    "identity": {"dataset_version": "v1.0-mini", "classes": ["car", "bus"]},
    "header": {"grid": {"x_min": -51.2}, "weight": 0.1 + 0.2, "none": None},
    "fields": (FieldSpec("labels", "npy", "int32", ("N",), "class id", "labels"), FieldSpec("meta", "json")),
    "scenes": (Scene("a" * 32, "scene-0001", "train", "Nacht, Regen: ü"),),
    "shards": (Shard(7, (TAR,)),),
    "index": {"token.npy": {"size": 128, "sha256": "1" * 64}},
    "plan": StoredFile("plan.json", 5, "2" * 64),
    "quarantined": ({"token": "b" * 32, "reason": "a.bin: truncated"},),
}
MANIFEST = Manifest(**VALUES)
ZARR = Manifest(
    **{
        **VALUES,
        "format": Format("zarr", 4, {"N": 9}),
        "fields": VALUES["fields"][:1],
        "shards": (Shard(3, tuple(StoredFile(f"data.zarr/{name}/c/0", 9, "3" * 64) for name in ("labels", "valid"))),),
        "extra": (StoredFile("data.zarr/zarr.json", 10, "4" * 64),),
    }
)


def write(manifest: Manifest, folder: Path) -> Manifest:
    return manifest.write(open_root(folder))


def read(folder: Path) -> Manifest:
    return Manifest.read(open_root(folder))


@pytest.mark.parametrize("manifest", [MANIFEST, ZARR], ids=["webdataset", "zarr"])
def test_it_reads_back_as_written_with_the_digest_of_its_file(tmp_path: Path, manifest: Manifest) -> None:
    written, again = write(manifest, tmp_path), read(tmp_path)
    assert again == written == manifest
    assert again.digest == written.digest == file_sha256(tmp_path / "manifest.json")


def test_equal_manifests_have_equal_bytes(tmp_path: Path) -> None:
    write(MANIFEST, tmp_path / "a")
    write(Manifest(**{**VALUES, "header": dict(reversed(VALUES["header"].items()))}), tmp_path / "b")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_it_lists_every_file_that_it_vouches_for() -> None:
    names = [file.name for file in ZARR.files]
    assert names == [
        "plan.json",
        "data.zarr/zarr.json",
        "index/token.npy",
        "data.zarr/labels/c/0",
        "data.zarr/valid/c/0",
    ]


def test_a_field_lies_in_the_shards_one_file_or_in_its_own() -> None:
    assert MANIFEST.shards[0].file_of(0) is MANIFEST.shards[0].file_of(1) is TAR
    assert ZARR.shards[0].file_of(1).name == "data.zarr/valid/c/0"
    assert MANIFEST.letters == ("N",)


def test_no_store_and_an_unfinished_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store \(no manifest\.json\); run cache-frames"):
        read(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no store \(no manifest\.json\)"):
        read(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(StoreError, match=r"an unfinished caching run \(no manifest\.json\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '"manifest"', "3", "{}", "\x00", "[" * 100_000, '{"format": NaN}']
)
def test_what_is_no_manifest_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        read(tmp_path)


def test_an_oversized_manifest_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(MANIFEST, tmp_path)
    size = (tmp_path / "manifest.json").stat().st_size
    monkeypatch.setattr(manifest_module, "MAX_DOCUMENT_BYTES", size)
    assert read(tmp_path) == MANIFEST
    monkeypatch.setattr(manifest_module, "MAX_DOCUMENT_BYTES", size - 1)
    with pytest.raises(CorruptError, match=rf"manifest\.json: {size} bytes, no store has more than"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("version", 2), ("version", None), ("version", "1"), ("version", [1]), ("format", "zarr")]
)
def test_another_format_or_version_names_both_and_the_remedy(tmp_path: Path, key: str, value: Any) -> None:
    write(MANIFEST, tmp_path)
    forge_manifest(tmp_path, lambda values: values.update({key: value}))
    with pytest.raises(StoreError, match=r"expected bevcask version 1; read it with the release") as raised:
        read(tmp_path)
    assert str(value) in str(raised.value) and not isinstance(raised.value, CorruptError)


@pytest.mark.parametrize("kind", ["student", "", None, ["frames"], {"frames": 1}])
def test_an_unknown_kind_is_corrupt(tmp_path: Path, kind: Any) -> None:
    write(MANIFEST, tmp_path)
    forge_manifest(tmp_path, lambda values: values.update(kind=kind))
    with pytest.raises(CorruptError, match="kind"):
        read(tmp_path)


NAMES = [
    "../shards/00000.tar",
    "shards/../../00000.tar",
    "shards/..",
    "shards/.",
    "shards/",
    "/etc/passwd",
    "/shards/00000.tar",
    "shards//00000.tar",
    "shards/.hidden",
    "shards\\00000.tar",
    "shards/a\\..\\b",
    "shards/a\0.tar",
    "shards/a\n",
    "shards/ä",
    "x" * 300,
    "",
    "..",
    "s3://bucket/00000.tar",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "put",
    [
        lambda values, name: values["shards"][0]["files"][0].__setitem__(0, name),
        lambda values, name: values["plan"].__setitem__(0, name),
        lambda values, name: values["extra"][0].__setitem__(0, name),
        lambda values, name: values["index"].update({name: {"size": 1, "sha256": ""}}),
    ],
    ids=["shard", "plan", "extra", "index"],
)
def test_a_file_name_that_leaves_the_store_is_refused(
    tmp_path: Path, name: str, put: Callable[[dict[str, Any], str], None]
) -> None:
    write(ZARR, tmp_path)
    forge_manifest(tmp_path, lambda values: put(values, name))
    with pytest.raises(CorruptError, match=r"manifest\.json: object name .* is not a plain relative path"):
        read(tmp_path)


TOP = ["format", "version", "kind", "layout", "identity", "header", "fields", "scenes", "shards", "index", "plan"]
TOP += ["extra", "quarantined"]


@pytest.mark.parametrize("key", TOP)
@pytest.mark.parametrize("value", ["absent", None, 5, "text", [5], [[]], {"a": 5}])
def test_each_part_missing_or_of_another_shape_is_one_clear_error(tmp_path: Path, key: str, value: Any) -> None:
    write(MANIFEST, tmp_path)
    forge_manifest(tmp_path, lambda values: values.pop(key) if value == "absent" else values.update({key: value}))
    if key == "header" and isinstance(value, dict):
        assert read(tmp_path).header == value
        return
    with pytest.raises(StoreError, match=r"manifest\.json") as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["fields"].append(values["fields"][0]),
        lambda values: values["fields"][0].update(name="../x"),
        lambda values: values["fields"][0].update(ext="pkl"),
        lambda values: values["fields"][0].update(dtype="object"),
        lambda values: values["fields"][0].pop("shape"),
        lambda values: values["scenes"][0].pop("split"),
        lambda values: values["shards"][0]["files"][0].__setitem__(1, "many"),
        lambda values: values["shards"][0]["files"][0].__setitem__(1, -1),
        lambda values: values["shards"][0]["files"][0].__setitem__(1, 1.5),
        lambda values: values["shards"][0]["files"][0].pop(),
        lambda values: values["shards"][0].update(files=[]),
        lambda values: values["shards"][0]["files"].append(["shards/1.tar", 1, ""]),
        lambda values: values["shards"][0].pop("frames"),
        lambda values: values["shards"][0].update(frames=float("inf")),
        lambda values: values["shards"][0].update(frames=float("nan")),
        lambda values: values["layout"].update(rows=float("inf")),
        lambda values: values["index"].update({"token.npy": 5}),
        lambda values: values["index"]["token.npy"].pop("sha256"),
        lambda values: values["identity"].pop("classes"),
        lambda values: values["identity"].update(classes="car"),
        lambda values: values["identity"].update(classes=[1]),
    ],
)
def test_a_part_of_a_part_that_makes_no_sense_is_corrupt(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    write(MANIFEST, tmp_path)
    forge_manifest(tmp_path, change)
    with pytest.raises(CorruptError, match=r"manifest\.json: "):
        read(tmp_path)


def test_what_a_later_release_may_add_is_ignored(tmp_path: Path) -> None:
    write(MANIFEST, tmp_path)
    forge_manifest(tmp_path, lambda values: values.update(later=1) or values["scenes"][0].update(location="boston"))
    assert read(tmp_path) == MANIFEST


def test_an_edit_by_hand_is_noticed(tmp_path: Path) -> None:
    write(MANIFEST, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"train"', '"val"'))
    with pytest.raises(CorruptError, match="does not match its own digest"):
        read(tmp_path)


def test_a_manifest_that_a_tool_has_laid_out_anew_is_refused(tmp_path: Path) -> None:
    """The seal is over the bytes, and so is the digest that runs keep."""
    write(MANIFEST, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(CorruptError, match="does not match its own digest"):
        read(tmp_path)
