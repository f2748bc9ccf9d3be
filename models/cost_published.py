"""SparseKD's table of costs, and how ours are held against it.

The table is of networks for Waymo: three classes, one group of branches, no velocity, another range. A preset's Waymo
form is its config with those changes, built to be counted, never trained. Parameters and the dense part follow from the
form; the sparse part depends on Waymo's clouds, which are not at hand: it is taken as what the table leaves for the
teacher, and a student's must then be that times the square of its encoder's factor (activations: times the factor).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.build import load_preset, resolve_config
from models.cost import count_dense

# The head's velocity branch, which Waymo's networks do without.
WITHOUT = ("vel",)


@dataclass(frozen=True)
class Published:
    """Figures of the table for one model, and its teacher's name. latency_ms: GTX 1060, GTX 1080 Ti, A100; score: L2
    mAPH on Waymo val, trained on 20 % of the data without distillation; distilled: the same with SparseKD (0 of
    teachers)."""

    teacher: str
    gflops: float
    activations_m: float
    parameters_m: float
    latency_ms: tuple[float, float, float]
    score: float
    distilled: float = 0.0


# Source: Yang et al. 2022, the table of the released repository; parameters from Li et al. 2023 (RDD).
SPARSEKD: dict[str, Published] = {
    "cp-voxel": Published("cp-voxel", 114.8, 101.9, 7.8, (125.70, 74.25, 56.13), 64.29),
    "cp-voxel-s": Published("cp-voxel", 47.8, 65.7, 4.0, (97.99, 65.68, 39.40), 62.23, 64.25),
    "cp-voxel-xs": Published("cp-voxel", 36.9, 58.4, 2.8, (88.19, 61.41, 36.65), 61.14, 63.53),
    "cp-voxel-xxs": Published("cp-voxel", 12.0, 33.1, 1.0, (70.44, 53.86, 38.01), 56.26, 59.28),
    "cp-pillar": Published("cp-pillar", 333.9, 303.0, 5.2, (157.90, 77.29, 51.94), 59.09),
    "cp-pillar-v0.4": Published("cp-pillar", 212.9, 197.7, 5.2, (103.37, 56.32, 57.07), 57.55, 59.24),
    "cp-pillar-v0.48": Published("cp-pillar", 149.4, 142.3, 5.2, (81.87, 49.64, 27.44), 56.27, 58.53),
    "cp-pillar-v0.64": Published("cp-pillar", 85.1, 88.0, 5.2, (54.52, 36.23, 19.56), 52.81, 55.82),
}
WAYMO_VOXELS = {"x_min": -75.2, "x_max": 75.2, "y_min": -75.2, "y_max": 75.2}
WAYMO_PILLARS_M = {"cp-pillar": 74.24, "cp-pillar-v0.4": 73.6, "cp-pillar-v0.48": 74.88, "cp-pillar-v0.64": 74.24}


@dataclass(frozen=True)
class Comparison:
    """One model of the table. gflops and activations_m are ours: `dense_*` from the network, the rest from the
    teacher's row; `*_off` is (ours - published) / published."""

    name: str
    published: Published
    parameters: int
    dense_gflops: float
    dense_activations_m: float
    gflops: float
    activations_m: float

    @property
    def gflops_off(self) -> float:
        return self.gflops / self.published.gflops - 1

    @property
    def activations_off(self) -> float:
        return self.activations_m / self.published.activations_m - 1

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        table = self.published
        return {
            "parameters": self.parameters,
            "parameters_published_m": table.parameters_m,
            "dense_gflops": round(self.dense_gflops, 3),
            "gflops": round(self.gflops, 3),
            "gflops_published": table.gflops,
            "dense_activations_m": round(self.dense_activations_m, 3),
            "activations_m": round(self.activations_m, 3),
            "activations_published_m": table.activations_m,
        }


def waymo_form(name: str) -> dict[str, Any]:
    """The config of a preset of the table with Waymo's classes, range and voxels."""
    changes: dict[str, Any] = {"preset": name, "head": {"tasks": [["car", "pedestrian", "bicycle"]]}}
    if load_preset(name)["kind"] == "centerpoint-voxel":
        changes |= {"voxels": WAYMO_VOXELS, "z_range": [-2.0, 4.0], "voxel_height_m": 0.15}
    else:
        half = WAYMO_PILLARS_M[name]
        changes |= {"pillars": {"x_min": -half, "x_max": half, "y_min": -half, "y_max": half}, "z_range": [-2.0, 4.0]}
    return resolve_config(changes)


def compare(name: str) -> Comparison:
    """A preset of `SPARSEKD` against its row."""
    published = SPARSEKD[name]
    parameters, gflops, activations = _dense(name)
    _, teacher_gflops, teacher_activations = _dense(published.teacher)
    teacher = SPARSEKD[published.teacher]
    factor = float(_encoder_factor(load_preset(name)))
    return Comparison(
        name,
        published,
        parameters,
        gflops,
        activations,
        gflops + max(0.0, teacher.gflops - teacher_gflops) * factor**2,
        activations + max(0.0, teacher.activations_m - teacher_activations) * factor,
    )


def _dense(name: str) -> tuple[int, float, float]:
    """Parameters of the whole Waymo form; G multiply-adds as published and M activations behind its canvas."""
    cost = count_dense(waymo_form(name), WITHOUT).total
    return cost.parameters, cost.work.published / 1e9, cost.work.activations / 1e6


def _encoder_factor(config: Mapping[str, Any]) -> float:
    return float(config.get("width", {}).get("encoder", 1.0))
