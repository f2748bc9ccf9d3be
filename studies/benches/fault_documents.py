"""Damage to a store's JSON files, their digests left alone or made to agree: values, layout, bombs, names, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache.manifest import MANIFEST, PLAN
from studies.benches.fault_accidents import Rng, pick
from studies.benches.fault_forging import forge_manifest, reseal

BAD_NAMES = (
    "../outside", "/etc/passwd", "a/../../b", "shards/../../x", "C:\\x", "shards//x", "./x", "", "a\u0000b", ".hidden",
    "shards/\u202ex", "x" * 300,
)  # fmt: skip
HUGE = (2**31, 2**32 - 1, 2**48, 2**62, 2**64, 10**30, 10**400, -1, 1e308)


def _documents(rng: Rng, folder: Path) -> Path:
    return (folder / MANIFEST, folder / PLAN, pick(rng, folder, "records/*.json"))[rng.integers(3)]


def change_node(rng: Rng, value: Any) -> None:
    """Another value at a random place of a JSON tree."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in list(node.items()) if isinstance(node, dict) else enumerate(node):
            if key != "digest":
                places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    node, key = places[rng.integers(len(places))]
    old = node[key]
    choices: list[Any] = [None, True, [], {}, "", "x", 0, -1, *HUGE, *BAD_NAMES, [[]], {"a": 1}]
    if isinstance(old, int) and not isinstance(old, bool):
        choices += [old + 1, old - 1, str(old), float(old) if abs(old) < 2**1000 else old + 1] * 5
    elif isinstance(old, str):
        choices += [old + "x", old[1:], old.upper()] * 5
    action = rng.integers(8)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(old, list) and old:
        old.append(old[0])
    elif action == 2 and isinstance(old, dict):
        old["unknown"] = 1
    else:
        node[key] = choices[rng.integers(len(choices))]


def json_value(rng: Rng, folder: Path) -> str | None:
    """Another value in a JSON file, its digest left as it was."""
    path = _documents(rng, folder)
    before = path.read_bytes()
    value = json.loads(before)
    change_node(rng, value)
    path.write_text(json.dumps(value, sort_keys=True, indent=1) + "\n")
    return None if path.read_bytes() == before else f"{path.relative_to(folder)}"


def json_layout(rng: Rng, folder: Path) -> str | None:
    """The same values in other bytes."""
    path = _documents(rng, folder)
    before = path.read_bytes()
    path.write_bytes(
        (
            before.replace(b" ", b"\t", 1),
            before + b"\n",
            json.dumps(json.loads(before)).encode(),
            b"\xef\xbb\xbf" + before,
            before.replace(b"{", b'{"digest": "x",', 1),
            before.decode().encode("utf-16"),
        )[rng.integers(6)]
    )
    return f"{path.relative_to(folder)}"


def json_bomb(rng: Rng, folder: Path) -> str | None:
    """Nesting, digits and literals that parsers choke on."""
    path = _documents(rng, folder)
    bombs = (
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 200_000,
        b"NaN",
        b"1e999",
        b"null",
        b"\0" * 100,
        b'"\\ud800"',
        b"{}",
    )
    path.write_bytes(bombs[rng.integers(len(bombs))])
    return f"{path.relative_to(folder)}"


def forged_json_value(rng: Rng, folder: Path) -> str | None:
    """Another value in the manifest or a record, and its seal made to agree."""
    path = (folder / MANIFEST, pick(rng, folder, "records/*.json"))[rng.integers(2)]
    before = path.read_bytes()
    try:
        reseal(path, lambda values: change_node(rng, values))
    except ValueError:
        return None
    return None if path.read_bytes() == before else f"{path.relative_to(folder)}"


def forged_plan(rng: Rng, folder: Path) -> str | None:
    """Another value in the plan, and the manifest's digest of it made to agree."""
    path = folder / PLAN
    before = path.read_bytes()
    value = json.loads(before)
    change_node(rng, value)
    path.write_text(json.dumps(value, sort_keys=True, indent=1) + "\n")
    forge_manifest(folder)
    return None if path.read_bytes() == before else PLAN


def traversal(rng: Rng, folder: Path) -> str | None:
    """File names that lead elsewhere, in a manifest or record that is sealed again."""
    name = BAD_NAMES[rng.integers(len(BAD_NAMES))]
    record = rng.integers(4) == 0
    path = pick(rng, folder, "records/*.json") if record else folder / MANIFEST

    def change(values: dict[str, Any]) -> None:
        if record:
            values["files"][0][0] = name
        elif (where := rng.integers(3)) == 0:
            values["shards"][0]["files"][0][0] = name
        elif where == 1:
            values["plan"][0] = name
        else:
            values["index"][name] = values["index"].pop("token.npy")

    reseal(path, change)
    return f"{path.relative_to(folder)}: {name!r:.40}"


def oversized_claims(rng: Rng, folder: Path) -> str | None:
    """Sizes in the manifest that no store has, sealed again."""
    huge = HUGE[rng.integers(len(HUGE) - 1)]

    def change(values: dict[str, Any]) -> None:
        places: list[tuple[Any, Any]] = [(row, "size") for row in values["index"].values()]
        places += [(shard, "frames") for shard in values["shards"]]
        places += [(file, 1) for shard in values["shards"] for file in shard["files"]]
        places += [(values["layout"], "rows"), (values["plan"], 1)]
        places += [(values["layout"]["capacity"], letter) for letter in values["layout"]["capacity"]]
        bev = values["header"].get("bev", {})
        places += [(bev, key) for key in ("channels", "height", "width") if key in bev]
        node, key = places[rng.integers(len(places))]
        node[key] = huge

    reseal(folder / MANIFEST, change)
    return f"{huge:.3g}" if isinstance(huge, float) else f"about 2^{huge.bit_length()}"


def oversized_shape(rng: Rng, folder: Path) -> str | None:
    """A field of the manifest declared with a shape that no memory holds, sealed again."""

    def change(values: dict[str, Any]) -> None:
        fields = [row for row in values["fields"] if row["shape"]]
        field = fields[rng.integers(len(fields))]
        field["shape"][rng.integers(len(field["shape"]))] = "999999999"

    reseal(folder / MANIFEST, change)
    return "a field's shape"
