"""`plan --model`: what a detector costs by part, alone or beside its teacher, and SparseKD's table where it has a row.

One frame is counted and timed: a cloud of a file, the first key frame of a nuScenes folder, or one that is simulated
for it; pictures are noise on the cameras of a real rig, since no cost depends on what they show.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from rich.table import Table

from cache.errors import ConfigError, DataError
from models.build import build_detector, load_preset, preset_names
from models.cost import ModelCost, PartCost, compression_performance, count_cost, latency_ms
from models.cost_published import SPARSEKD, Comparison, compare
from models.detector import Batch, Detector
from pipeline.points import aggregate, read_lidar_file
from pipeline.simulator import simulate
from pipeline.simulator.rig import rig
from pipeline.tables import open_tables
from trainer.recipe import load_recipe, recipe_names

IMAGE_FILE = (1600, 900)  # pixels that a rig's intrinsics are of
SIMULATED = "v1.0-mini"


@dataclass(frozen=True)
class CloudSource:
    """Where a LiDAR detector's cloud comes from: a file, else a nuScenes folder, else the simulator. sweeps: before the
    key frame, for the last two."""

    file: Path | None = None
    data_root: Path | None = None
    version: str = SIMULATED
    sweeps: int = 9


@dataclass(frozen=True)
class Measured:
    """A detector's cost on one frame. name: of its preset or recipe; preset: the one its config equals, "" for none."""

    name: str
    preset: str
    cost: ModelCost
    latency_ms: float


def config_of(name: str) -> dict[str, Any]:
    """The detector config of a preset, a shipped recipe or a recipe's file; ConfigError naming what there is."""
    if name in preset_names():
        return load_preset(name)
    if name not in recipe_names() and not Path(name).is_file():
        raise ConfigError(
            f"model {name!r}: no preset, shipped recipe or recipe's file; the presets are {', '.join(preset_names())}"
        )
    return dict(load_recipe(name).model)


def read_cloud(source: CloudSource) -> tuple[np.ndarray, str]:
    """(P, 5) float32 x, y, z, intensity, dt_s, and what it is, in words.

    Raises DataError for a file that holds no such cloud, and as `pipeline.tables.open_tables` does.
    """
    if source.file is not None:
        return _cloud_file(source.file), f"{source.file.name}"
    if source.data_root is not None:
        return _first_key_frame(source.data_root, source.version, source.sweeps)
    with tempfile.TemporaryDirectory(prefix="bevcask-plan-") as folder:
        root = Path(folder) / "simulated"
        simulate(root, version=SIMULATED, scenes={"train": 1}, frames=1, sweeps=source.sweeps, workers=1)
        return _first_key_frame(root, SIMULATED, source.sweeps)


def measure(name: str, cloud: np.ndarray | None, runs: int) -> Measured:
    """Builds the detector with fresh weights, counts one forward pass and times `runs`. cloud: for LiDAR detectors."""
    config = config_of(name)
    torch.manual_seed(0)
    model = build_detector(config)
    batch = Batch(points=[torch.from_numpy(cloud)], tokens=["plan"]) if cloud is not None else pictures(model)
    return Measured(name, name if name in SPARSEKD else "", count_cost(model, batch), latency_ms(model, batch, runs))


def is_camera(name: str) -> bool:
    """Whether a detector reads images; told without spconv or weights."""
    return "image_size" in config_of(name)


def pictures(model: Detector) -> Batch:
    """One frame of noise for a camera detector, with the calibration of a real rig."""
    width, height = model.config["image_size"]
    car, scale = rig("boston"), np.diag([width / IMAGE_FILE[0], height / IMAGE_FILE[1], 1.0])
    to_lidar = np.linalg.inv(car.lidar.pose.matrix())
    cameras = [to_lidar @ camera.pose.matrix() for camera in car.cameras]
    intrinsics = [scale @ camera.intrinsic for camera in car.cameras]
    return Batch(
        images=torch.randn(1, len(cameras), 3, height, width),
        intrinsics=torch.from_numpy(np.stack(intrinsics).astype(np.float32))[None],
        camera_to_lidar=torch.from_numpy(np.stack(cameras).astype(np.float32))[None],
        tokens=["plan"],
    )


def cost_by_part(measured: Measured, against: Measured | None, frame: str) -> list[RenderableType]:
    """A table by part; with a teacher beside it, the total over the teacher's too."""
    table = Table(title=f"{measured.name}: {frame}", title_justify="left")
    for heading in ("part", "parameters", "GMACs", "as published", "M acts", "ms"):
        table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
    for part in measured.cost.parts:
        table.add_row(*_part_cells(part), "")
    table.add_row(*_part_cells(measured.cost.total), _ms_text(measured.latency_ms), style="bold")
    if against is not None:
        mine, theirs = measured.cost.total, against.cost.total
        table.add_section()
        table.add_row(*_part_cells(replace(theirs, name=against.name)), _ms_text(against.latency_ms))
        table.add_row(
            "share of it",
            f"{mine.parameters / theirs.parameters:.1%}",
            f"{mine.work.multiply_adds / theirs.work.multiply_adds:.1%}",
            f"{mine.work.published / theirs.work.published:.1%}",
            f"{mine.work.activations / theirs.work.activations:.1%}",
            f"{measured.latency_ms / against.latency_ms:.1%}",
        )
    return [
        table,
        "as published: GMACs with transposed convolutions counted at their outputs, as SparseKD's table has it",
    ]


def _part_cells(part: PartCost) -> list[str]:
    work = part.work
    return [
        part.name,
        f"{part.parameters:,}",
        f"{work.multiply_adds / 1e9:.3f}",
        f"{work.published / 1e9:.3f}",
        f"{work.activations / 1e6:.3f}",
    ]


def _ms_text(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def published_table(row: Comparison) -> list[RenderableType]:
    """SparseKD's row beside ours, in its Waymo form."""
    table = Table(title=f"{row.name} for Waymo, against SparseKD's table", title_justify="left")
    for heading in ("", "ours", "of these dense", "published", "off"):
        table.add_column(heading, justify="left" if not heading else "right")
    published = row.published
    table.add_row("M parameters", f"{row.parameters / 1e6:.2f}", "", f"{published.parameters_m:.1f}", "")
    for label, ours, dense, theirs, off in (
        ("GFLOPs", row.gflops, row.dense_gflops, published.gflops, row.gflops_off),
        ("M activations", row.activations_m, row.dense_activations_m, published.activations_m, row.activations_off),
    ):
        table.add_row(label, f"{ours:.1f}", f"{dense:.1f}", f"{theirs:.1f}", f"{off:+.1%}")
    teacher = published.teacher
    return [
        table,
        f"dense is counted; the rest depends on Waymo's clouds and is what the table leaves for {teacher}, times the "
        "square of the encoder's factor (activations: times the factor)",
    ]


def ratio_line(
    measured: Measured, against: Measured, scores: tuple[float, float], powers: tuple[float, float]
) -> tuple[float, str]:
    """CPR of the two and the line that tells it. powers: of activations, of scores."""
    activations = (float(measured.cost.total.work.activations), float(against.cost.total.work.activations))
    ratio = compression_performance(activations, scores, *powers)
    how = f"powers {powers[0]:g} and {powers[1]:g}; a reconstruction of SparseKD's ratio, whose powers are not known"
    return ratio, f"CPR of {measured.name} against {against.name}: {ratio:.3f} ({how})"


def to_dict(measured: Measured) -> dict[str, Any]:
    """For scripts."""
    return {"name": measured.name, "latency_ms": round(measured.latency_ms, 3), "parts": measured.cost.to_dict()}


def published_of(measured: Measured) -> Comparison | None:
    """The comparison with the table, where the preset has a row."""
    return compare(measured.preset) if measured.preset else None


def scores_of(measured: Measured, against: Measured, given: Mapping[str, float | None]) -> tuple[float, float] | None:
    """Scores of student and teacher: those given, else those of the table without distillation; None where unknown."""
    student, teacher = given["score"], given["against"]
    if student is None and teacher is None and measured.preset and against.preset:
        return SPARSEKD[measured.preset].score, SPARSEKD[against.preset].score
    return None if student is None or teacher is None else (student, teacher)


def _cloud_file(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        try:
            cloud = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as an array ({error}); give (P, 5) float32") from None
        if cloud.ndim != 2 or cloud.shape[1] != 5:
            raise DataError(f"{path}: an array {cloud.shape}, expected (P, 5): x, y, z, intensity, dt_s")
        return cloud.astype(np.float32)
    cloud = read_lidar_file(path).copy()
    cloud[:, 4] = 0.0  # the ring; one sweep has no age
    return cloud


def _first_key_frame(root: Path, version: str, sweeps: int) -> tuple[np.ndarray, str]:
    data = open_tables(root, version, None, sweeps)
    record = next((record for scene in data.records for record in scene), None)
    if record is None:
        raise DataError(f"{root}: {version} has no key frame to count; choose another version")
    cloud = aggregate(record.sweeps, root)
    count = len(record.sweeps)
    sweep_text = f"{count} sweep{'s' if count > 1 else ''}, {len(cloud):,} points"
    return cloud, f"the first key frame of {root.name} ({sweep_text})"
