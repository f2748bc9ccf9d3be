"""The real nuScenes sensor rigs: mounts, camera intrinsics, capture times, and the HDL-32E's beam pattern.

Figures are those published in calibrated_sensor.json (three distinct rigs) and measured on real LiDAR files: 32 rings
1.333 degrees apart, about 1,085 firing columns a turn, clockwise seen from above, files column by column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cache.frame import CAMERA_CHANNELS, Pose

IMAGE_WIDTH, IMAGE_HEIGHT = 1600, 900
KEYFRAME_US = 500_000
SWEEP_US = 50_000
MAX_SWEEPS = 9  # the tenth sweep before a keyframe is the previous keyframe itself

# camera minus LiDAR timestamp of a keyframe, microseconds: each camera is triggered as the LiDAR passes it
CAMERA_OFFSET_US: dict[str, int] = {
    "CAM_FRONT_LEFT": -42_900,
    "CAM_FRONT": -35_300,
    "CAM_FRONT_RIGHT": -27_300,
    "CAM_BACK_RIGHT": -19_700,
    "CAM_BACK": -10_200,
    "CAM_BACK_LEFT": -300,
}

RINGS = 32
RING_ELEVATION_DEG = -30.67 + (4.0 / 3.0) * np.arange(RINGS)
AZIMUTH_STEP_DEG = 0.332
MAX_RANGE_M = 100.0

# Outline of the own car (Renault Zoe) about the rear axle: x back, x front, half width, metres.
EGO_OUTLINE_M = (-0.65, 3.45, 0.9)


@dataclass(frozen=True)
class Mount:
    """A sensor on the car: channel, pose sensor -> ego, and for a camera its intrinsic matrix (3, 3), else None."""

    channel: str
    pose: Pose
    intrinsic: np.ndarray | None


@dataclass(frozen=True)
class Rig:
    """One car's sensors: LIDAR_TOP and the six cameras in CAMERA_CHANNELS order."""

    name: str
    vehicle: str
    lidar: Mount
    cameras: tuple[Mount, ...]

    @property
    def mounts(self) -> tuple[Mount, ...]:
        return (self.lidar, *self.cameras)


@cache
def rig(name: str) -> Rig:
    """The rig of that name: boston (n008), singapore or late (both n015)."""
    vehicle, figures = _FIGURES[name]
    mounts = {}
    for channel, (translation, rotation, optics) in figures.items():
        intrinsic = None
        if optics is not None:
            f, cx, cy = optics
            intrinsic = np.array([[f, 0.0, cx], [0.0, f, cy], [0.0, 0.0, 1.0]])
        mounts[channel] = Mount(channel, Pose(np.array(translation), np.array(rotation)), intrinsic)
    return Rig(name, vehicle, mounts["LIDAR_TOP"], tuple(mounts[c] for c in CAMERA_CHANNELS))


def beam_directions(columns: int, start_deg: float) -> np.ndarray:
    """Unit vectors (columns * 32, 3) of one turn in the LiDAR frame, in file order: column by column, ring 0..31
    within.

    The first column fires at azimuth start_deg (counter-clockwise from +x), later ones clockwise.
    """
    azimuth = np.radians(start_deg - AZIMUTH_STEP_DEG * np.arange(columns))[:, None]
    elevation = np.radians(RING_ELEVATION_DEG)[None, :]
    out = np.empty((columns, RINGS, 3))
    out[..., 0] = np.cos(elevation) * np.cos(azimuth)
    out[..., 1] = np.cos(elevation) * np.sin(azimuth)
    out[..., 2] = np.sin(elevation)
    return out.reshape(-1, 3)


# rig -> vehicle, channel -> (translation, rotation w x y z, (f, cx, cy) or None); sensor -> ego
_FIGURES: dict[
    str, tuple[str, dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, float, float] | None]]]
] = {
    "boston": (
        "n008",
        {
            "LIDAR_TOP": (
                (0.985793, 0.0, 1.84019),
                (0.706749235646644, -0.015300993788500868, 0.01739745181256607, -0.7070846669051719),
                None,
            ),
            "CAM_FRONT_LEFT": (
                (1.5752559464, 0.500519383135, 1.50696032589),
                (0.6812088525125634, -0.6687507165046241, 0.2101702448905517, -0.21108161122114324),
                (1257.8625342125129, 827.2410631095686, 450.915498205774),
            ),
            "CAM_FRONT": (
                (1.72200568478, 0.00475453292289, 1.49491291905),
                (0.5077241387638071, -0.4973392230703816, 0.49837167536166627, -0.4964832014373754),
                (1252.8131021185304, 826.588114781398, 469.9846626224581),
            ),
            "CAM_FRONT_RIGHT": (
                (1.58082565783, -0.499078711449, 1.51749368405),
                (0.20335173766558642, -0.19146333228946724, 0.6785710044972951, -0.6793609166212989),
                (1256.7485116440405, 817.7887570959712, 451.9541780095127),
            ),
            "CAM_BACK_RIGHT": (
                (1.05945173053, -0.46720294852, 1.55050857555),
                (0.13819187705364147, -0.13796718183628456, -0.6893329941542625, 0.697630335509333),
                (1249.9629280788233, 825.3768045375984, 462.54816385708756),
            ),
            "CAM_BACK": (
                (0.05524611077, 0.0107882366898, 1.56794286957),
                (0.5067997344989889, -0.4977567019405021, -0.4987849934090844, 0.496594225837321),
                (796.8910634503094, 857.7774326863696, 476.8848988407415),
            ),
            "CAM_BACK_LEFT": (
                (1.04852047718, 0.483058131052, 1.56210154484),
                (0.7048620297871717, -0.6907306801461466, -0.11209091960167808, 0.11617345743327073),
                (1254.9860565800168, 829.5769333630991, 467.1680561863987),
            ),
        },
    ),
    "singapore": (
        "n015",
        {
            "LIDAR_TOP": (
                (0.943713, 0.0, 1.84023),
                (0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817),
                None,
            ),
            "CAM_FRONT_LEFT": (
                (1.52387798135, 0.494631336551, 1.50932822144),
                (0.6757265034669446, -0.6736266522251881, 0.21214015046209478, -0.21122827103904068),
                (1272.5979470598488, 826.6154927353808, 479.75165386361925),
            ),
            "CAM_FRONT": (
                (1.70079118954, 0.0159456324149, 1.51095763913),
                (0.4998015430569128, -0.5030316162024876, 0.4997798114386805, -0.49737083824542755),
                (1266.417203046554, 816.2670197447984, 491.50706579294757),
            ),
            "CAM_FRONT_RIGHT": (
                (1.5508477543, -0.493404796419, 1.49574800619),
                (0.2060347966337182, -0.2026940577919598, 0.6824507824531167, -0.6713610884174485),
                (1260.8474446004698, 807.968244525554, 495.3344268742088),
            ),
            "CAM_BACK_RIGHT": (
                (1.0148780988, -0.480568219723, 1.56239545128),
                (0.12280980120078765, -0.132400842670559, -0.7004305821388234, 0.690496031265798),
                (1259.5137405846733, 807.2529053838625, 501.19579884916527),
            ),
            "CAM_BACK": (
                (0.0283260309358, 0.00345136761476, 1.57910346144),
                (0.5037872666382278, -0.49740249788611096, -0.4941850223835201, 0.5045496097725578),
                (809.2209905677063, 829.2196003259838, 481.77842384512485),
            ),
            "CAM_BACK_LEFT": (
                (1.03569100218, 0.484795032713, 1.59097014818),
                (0.6924185592174665, -0.7031619420114925, -0.11648342771943819, 0.11203317912370753),
                (1256.7414812095406, 792.1125740759628, 492.7757465151356),
            ),
        },
    ),
    "late": (
        "n015",
        {
            "LIDAR_TOP": (
                (0.891067, 0.0, 1.84292),
                (0.7043825600303035, 0.002529989518177017, -0.0013265948325242168, -0.7098147986794471),
                None,
            ),
            "CAM_FRONT_LEFT": (
                (1.564, 0.472, 1.535),
                (0.6749672883132785, -0.6702326464493555, 0.21013653934841947, -0.2259424576550029),
                (1256.4720761102153, 759.9201772536986, 418.2347543062189),
            ),
            "CAM_FRONT": (
                (1.671, -0.026, 1.536),
                (0.5008123506024099, -0.496820732721925, 0.4963493647221966, -0.5059579598757297),
                (1262.8093578767177, 786.6784634591471, 437.9890946201144),
            ),
            "CAM_FRONT_RIGHT": (
                (1.593, -0.527, 1.526),
                (0.22383629788979093, -0.21087341359410547, 0.6710418554409988, -0.6746351187363905),
                (1264.1253743585607, 761.8659236816043, 415.0768894058469),
            ),
            "CAM_BACK_RIGHT": (
                (1.042, -0.456, 1.595),
                (0.12392664517942022, -0.13099150918735702, -0.6956208531150481, 0.6954099796860017),
                (1259.4297629105833, 752.9541347831612, 429.46398926977497),
            ),
            "CAM_BACK": (
                (0.086, -0.007, 1.541),
                (0.5006316254997311, -0.508201421131807, -0.49914796672300266, 0.49188474099671065),
                (798.1242652672415, 679.0081140747895, 419.2474525237902),
            ),
            "CAM_BACK_LEFT": (
                (1.055, 0.441, 1.605),
                (0.6991074021274409, -0.6957784949830705, -0.11894121100606163, 0.11399173011286876),
                (1258.2338510172276, 742.9036438917772, 422.93240569290015),
            ),
        },
    ),
}
