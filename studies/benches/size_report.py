"""The size benchmark's figures as markdown, for the terminal and for docs/benchmarks.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def report(figures: Mapping[str, float], details: Mapping[str, Any]) -> str:
    """All tables, one after another."""
    parts = [
        "## Size\n",
        _teacher_lines(details),
        _size_table(figures),
        "\nWhere the bytes go, per frame:\n",
        _parts_table(details["stores"]),
        "\n## Exactness\n",
        _stages_table(details["stages"]),
        "\nThe same with a student at a chosen distance from the teacher, against the fp32 teacher (map gradient):\n",
        _curve_table(details["residual_curve"]),
        "\n## Codecs\n",
        *(f"\n{name}:\n\n{codec_lines(rows)}" for name, rows in details["codecs"].items()),
    ]
    return "\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column is text, the others figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _teacher_lines(details: Mapping[str, Any]) -> str:
    t = details["teacher"]
    return (
        f"Teacher: {t['steps']:.0f} steps, loss {t['first_loss']:.1f} -> {t['last_loss']:.2f}, val mAP {t['mAP']:.3f} "
        f"(the same predictions on other frames: {t['mAP_shuffled']:.3f}). {details['frames']} frames with "
        f"{details['objects_per_frame']:.1f} objects on the grid.\n"
    )


def _size_table(figures: Mapping[str, float]) -> str:
    header = ["bytes on disk a frame", "literal", "dilated by a cell"]
    names = {
        "cells_fp16_bytes": ("cells, fp16", "{:,.0f}"),
        "cells_u8_bytes": ("cells, u8", "{:,.0f}"),
        "ratio_fp16": ("raw dense fp16 / cells fp16", "{:.1f}"),
        "ratio_u8": ("raw dense fp16 / cells u8", "{:.1f}"),
        "ratio_same_codec": ("dense fp16 store / cells fp16", "{:.1f}"),
        "trainval_gb_fp16": ("34,149 frames, fp16, GB", "{:.2f}"),
        "trainval_gb_u8": ("34,149 frames, u8, GB", "{:.2f}"),
    }
    rows = [
        [label, *(text.format(figures[name + suffix]) for suffix in ("", "_dilated"))]
        for name, (label, text) in names.items()
    ]
    raw = f"{figures['dense_fp16_bytes']:,.0f}"
    return table(header, [["raw dense fp16", raw, raw], *rows])


def _parts_table(stores: Mapping[str, Any]) -> str:
    parts = list(dict.fromkeys(part for store in stores.values() for part in store["parts"]))
    rows = [["cells", *(f"{store['cells']:,.0f}" for store in stores.values())]]
    rows += [[part, *(_count(store["parts"].get(part)) for store in stores.values())] for part in parts]
    rows += [["all", *(f"{store['total']:,.0f}" for store in stores.values())]]
    return table(["", *stores], rows)


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _stages_table(stages: Sequence[Mapping[str, Any]]) -> str:
    header = ["stage", "store", "against", "residual / spread", "loss", "gradient: map", "adaptor", "student"]
    against = {
        "rounded": "live teacher rounded to fp16",
        "augmented": "the same, augmented, fp64 sampling",
        "stored": "live teacher, fp32",
    }
    rows = []
    for stage in stages:
        for part, label in against.items():
            for store, found in stage[part].items():
                errors = (found[key] for key in ("loss", "map_gradient", "adaptor_gradient", "weights_gradient"))
                stage_name = f"{stage['stage']} ({stage['step']})"
                rows.append([stage_name, store, label, f"{found['residual']:.2f}", *(f"{e:.1e}" for e in errors)])
    return table(header, rows)


def _curve_table(curve: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    asked = [f"{row['asked']:g}" for row in next(iter(curve.values()))]
    rows = [[name, *(f"{row['map_gradient']:.1e}" for row in found)] for name, found in curve.items()]
    return table(["residual / spread", *asked], rows)


def codec_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """One codec table; smallest first within a dtype."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    ordered = sorted(rows, key=lambda row: (dtypes.index(row["dtype"]), row["bytes_per_frame"]))
    lines = [
        [
            f"{row['dtype']} {row['codec']}, {row['layout']}-major",
            f"{row['bytes_per_frame']:,.0f}",
            f"{row['ratio']:.1f}",
            f"{row['encode_mb_s']:,.0f}",
            f"{row['decode_mb_s']:,.0f}",
            f"{row['error']:.1e}",
        ]
        for row in ordered
    ]
    return table(["", "bytes a frame", "ratio", "encode MB/s", "decode MB/s", "error / spread"], lines)
