"""Plans: what a store cannot hold is refused before a byte is written, and a shard depends on what it holds alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec
from cache.plan import Format, Scene, StorePlan
from tests.cache.stores import (
    DETECTION_FIELDS,
    FORMATS,
    KINDS,
    SCENES,
    SHARDS,
    TOKENS,
    ZARR,
    frame_plan,
    plan_of,
    teacher_plan,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_reads_back_from_json(kind: tuple[str, Format]) -> None:
    plan = plan_of(*kind)
    again = StorePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and again.to_dict() == plan.to_dict()
    assert again.shard_plans() == plan.shard_plans()


def test_a_plans_keys_come_in_any_order() -> None:
    turned = frame_plan(header=dict(reversed(frame_plan().header.items())))
    assert [shard.digest for shard in turned.shard_plans()] == [shard.digest for shard in frame_plan().shard_plans()]
    capacity = dict(reversed(ZARR.capacity.items()))
    assert list(Format("zarr", 3, capacity).capacity) == list(ZARR.capacity) == ["K", "N"]


def digests(plan: StorePlan) -> list[str]:
    return [shard.digest for shard in plan.shard_plans()]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "frames"},
        {"header": {}},
        {"identity": {**teacher_plan().identity, "dataset_version": "other"}},
        {"fields": teacher_plan().fields[:3]},
        {"fields": teacher_plan().fields[::-1]},
        {"format": ZARR},
        {"format": dataclasses.replace(ZARR, rows=4)},
        {"format": dataclasses.replace(ZARR, capacity={"K": 91, "N": 6})},
    ],
)
def test_every_setting_is_in_every_shards_digest(changes: dict[str, Any]) -> None:
    assert not set(digests(teacher_plan(**changes))) & set(digests(teacher_plan()))
    assert digests(teacher_plan(**changes)) == digests(teacher_plan(**changes))


def test_a_shards_digest_is_of_its_own_frames_whatever_stands_beside_it() -> None:
    whole = digests(teacher_plan())
    assert len(set(whole)) == 3
    assert digests(teacher_plan(shards=SHARDS[:2])) == whole[:2]
    assert digests(teacher_plan(shards=SHARDS[::-1])) == whole[::-1]  # as where stores are merged
    assert digests(teacher_plan(scenes=SCENES[:1])) == whole
    assert digests(teacher_plan(shards=(SHARDS[0][::-1], *SHARDS[1:])))[0] != whole[0]


def test_shard_plans_know_their_number_record_and_fields() -> None:
    shards = teacher_plan(format=ZARR).shard_plans()
    assert [(shard.number, shard.record, shard.tokens) for shard in shards] == [
        (i, f"records/0000{i}.json", SHARDS[i]) for i in range(3)
    ]
    assert all(shard.fields == teacher_plan().fields and shard.format == ZARR for shard in shards)


def test_letters_stand_in_the_order_of_the_fields() -> None:
    assert teacher_plan().letters == ("K", "N") and frame_plan().letters == ("N", "M", "D", "P")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": (SHARDS[0], SHARDS[0])}, f"frame {TOKENS[0]} is planned twice"),
        ({"shards": ((TOKENS[3], TOKENS[1], TOKENS[3]),)}, f"frame {TOKENS[3]} is planned twice"),
        ({"shards": ()}, "a store with 0 shards"),
        ({"fields": (*DETECTION_FIELDS, DETECTION_FIELDS[0])}, "no field or scene twice"),
        ({"scenes": (SCENES[0], dataclasses.replace(SCENES[1], token=SCENES[0].token))}, "no field or scene twice"),
    ],
)
@pytest.mark.parametrize("layout", FORMATS, ids=["webdataset", "zarr"])
def test_what_no_store_can_hold_is_refused(layout: Format, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        teacher_plan(format=layout, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": (FieldSpec("meta", "json"),)}, r"zarr: fields \['meta'\] are no arrays"),
        ({"fields": (FieldSpec("cam", "jpg"),)}, r"zarr: fields \['cam'\] are no arrays"),
        ({"fields": (FieldSpec("a", "npy", "int32", ("0",)),)}, r"zarr: fields \['a'\] are no arrays with values"),
        ({"fields": (FieldSpec("a", "npy", "int32", ("Q",)),)}, r"letters \['Q'\] have no capacity"),
        ({"format": Format("zarr", 3, {"K": 5})}, r"letters \['N'\] have no capacity"),
        ({"format": Format("zarr", 3, {"K": 5, "N": 0})}, r"letters \['N'\] have no capacity"),
        ({"format": Format("zarr", 1, ZARR.capacity)}, "a shard has more than 1 frames"),
        ({"format": Format("zarr", 0, ZARR.capacity), "shards": ((),)}, "0 rows a shard"),
        ({"fields": (FieldSpec("valid", "npy", "bool"),)}, r"fields named \['valid'\]"),
        ({"fields": (FieldSpec("token", "npy", "uint8", ("9",)),)}, r"fields named \['token'\]"),
        ({"fields": (FieldSpec("size_k", "npy", "uint8", ("K",)),)}, r"fields named \['size_k'\]"),
    ],
)
def test_what_no_zarr_store_can_hold_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message) as raised:
        teacher_plan(**{"format": ZARR, **changes})
    assert "\n" not in str(raised.value)
    webdataset = {**changes, "format": Format()}
    assert teacher_plan(**webdataset).format.name == "webdataset"  # which holds it


@pytest.mark.parametrize(
    "values",
    [
        {"name": "tar", "rows": 0, "capacity": {}},
        {"name": "zarr", "rows": -1, "capacity": {}},
        {"name": "zarr", "rows": 1, "capacity": {"K": -5}},
    ],
)
def test_a_format_that_is_unknown_or_impossible_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(CorruptError, match="expected one of webdataset, zarr"):
        Format.from_dict(values)


def test_scenes_read_back() -> None:
    for scene in (*SCENES, Scene("c" * 32, "ü", "val", 'Nacht, "Regen"')):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
