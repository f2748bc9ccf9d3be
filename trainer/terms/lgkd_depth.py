"""BEV-LGKD's depth term: the student's depth distribution should be a camera teacher's, where LiDAR has a return.

    sound      L = t^2 sum_j KL(q_j || softmax(z_j / t)) / J,     q_j = p_j^(1/t) / sum of it
    released   L = t^2 sum_j sum_d BCE(softmax(z_j)_d / t, p_jd / t) / J

over the J judged cells j of the student's depth maps, z its logits, p the teacher's stored distribution. `sound` is
distillation as it is defined: p^(1/t), normalised, is the softmax of the teacher's logits over t, whatever constant the
store lost, and its least value is 0. `released` divides probabilities instead, and keeps the entropy of p as its floor.

The store's distributions are of the teacher's test-time pictures. A student's cell is traced through its own resize,
crop and flip to the stored image and from there to the teacher's, where the distribution is read between cells (a mean
of distributions is one); cells that the teacher did not see are not judged. fp32 inside; 75 ms of one core for 24
pictures of 16 x 44 cells and 112 bins, all judged, forward and backward. Source: BEV-LGKD, arXiv 2212.00623, and code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cache.errors import ConfigError, DataError
from cache.store import TeacherStore
from models.config import Config
from models.depth import depth_targets
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import DepthSaid, TeacherSaid
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear
from trainer.terms.store_facts import depth_edges
from trainer.terms.term import TermNeeds

LEAST_SHARE = 0.01  # of the teacher's mass in the student's range: below it re-binning would judge by a tail


class LgkdDepthOptions(Config):
    """form: see the module; temperature: t (released: 1.25); where: cells with a return in range (released: lidar), or
    all; bins: refuse a teacher with other bins (same), or share its mass out by overlap (rebin)."""

    form: Literal["sound", "released"] = "sound"
    temperature: float = Field(default=1.25, gt=0)
    where: Literal["lidar", "all"] = "lidar"
    bins: Literal["same", "rebin"] = "same"

    @model_validator(mode="after")
    def _probabilities(self) -> LgkdDepthOptions:
        if self.form == "released" and self.temperature < 1:
            raise ValueError(f"temperature {self.temperature}: the released form divides probabilities, give 1 or more")
        return self


class LgkdDepth(nn.Module):
    """A `trainer.terms.term.Term`. edges: (D + 1,) m of the student's bins."""

    edges: Tensor
    shares: Tensor

    def __init__(
        self, name: str, weight: float, options: LgkdDepthOptions, edges: Tensor, teacher_edges: Tensor
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.needs = name, weight, options, needs_of(options)
        same = len(edges) == len(teacher_edges) and torch.allclose(edges, teacher_edges, rtol=0, atol=1e-4)
        if not same and options.bins == "same":
            raise ConfigError(
                f"term {name}: the student's {_written(edges)} are not the teacher's {_written(teacher_edges)}; set "
                "the student's [model.depth] to the teacher's, or bins = \"rebin\""
            )
        self.register_buffer("edges", edges, persistent=False)
        shares = torch.zeros(0) if same else overlap_shares(teacher_edges, edges)
        self.register_buffer("shares", shares, persistent=False)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: LgkdDepthOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> LgkdDepth:
        """The term for a student. ConfigError where it has no depth distribution."""
        student: Any = model
        edges = getattr(student, "depth_edges", None)
        if edges is None:
            raise ConfigError(
                f"term {name}: the student gives no depth_logits; choose a model that lifts images by a depth "
                "distribution, such as the preset lift-splat-r50"
            )
        return cls(name, weight, options, edges.detach().clone(), torch.tensor(depth_edges(teacher)))

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        logits, depth = output.depth_logits, said.depth
        assert logits is not None
        assert depth is not None
        with torch.autocast(logits.device.type, enabled=False):
            judged = self._judged(logits, batch)
            picture, row, col = judged.nonzero().unbind(dim=1)
            teacher_row, teacher_col, inside = places_on_teacher(picture, row, col, batch, depth, logits.shape)
            picture, row, col = picture[inside], row[inside], col[inside]
            z = at_least_fp32(logits[picture, :, row, col])  # (J, D)
            probs = depth.probs.flatten(0, 1).to(z.dtype)
            p = sample_bilinear(probs, picture, teacher_row[inside], teacher_col[inside])
            p, z = self._in_students_bins(p, z)
            each = _softened(z, p, self.options) if self.options.form == "sound" else _released(z, p, self.options)
            numerator, count = each.sum(), torch.tensor([float(len(z))], device=z.device)
        return {self.name: LossPart(numerator[None], count.to(z.dtype), self.weight)}

    def _judged(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B * cameras, h, w) bool."""
        pictures, _, height, width = logits.shape
        if self.options.where == "all":
            return torch.ones((pictures, height, width), dtype=torch.bool, device=logits.device)
        if batch.depth_points is None:
            raise DataError(
                f"term {self.name}: the batch holds no LiDAR depth labels; set [data] depth = true, or the term's "
                'where = "all"'
            )
        points = batch.depth_points.to(logits.device)
        return depth_targets(points, pictures, (height, width), _stride(logits, batch), self.edges) >= 0

    def _in_students_bins(self, p: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (J', D) whose teacher's mass lies in the student's range, that mass summing to 1."""
        if len(self.shares):
            p = p @ self.shares.to(p.dtype)
        mass = p.sum(dim=1, keepdim=True)
        enough = mass[:, 0] > LEAST_SHARE
        return p[enough] / mass[enough], z[enough]


def _softened(z: Tensor, p: Tensor, options: LgkdDepthOptions) -> Tensor:
    """(J,) t^2 KL of the two distributions at temperature t."""
    t = options.temperature
    q = p.pow(1 / t)
    q = q / q.sum(dim=1, keepdim=True)
    return t**2 * (torch.xlogy(q, q) - q * F.log_softmax(z / t, dim=1)).sum(dim=1)


def _released(z: Tensor, p: Tensor, options: LgkdDepthOptions) -> Tensor:
    """(J,) t^2 sum over bins of the binary cross-entropy of probabilities divided by t; t >= 1 keeps them below 1."""
    t = options.temperature
    found, wanted = (z.softmax(dim=1) / t).clamp(max=1), (p / t).clamp(max=1)  # 1 + rounding is no probability
    # torch refuses NaN there with an error of its own, and on a GPU ends the process: the loss is to tell of it
    each = F.binary_cross_entropy(found.nan_to_num(0.5), wanted, reduction="none").sum(dim=1)
    return t**2 * each + 0.0 * z.sum(dim=1)


def places_on_teacher(
    picture: Tensor, row: Tensor, col: Tensor, batch: Batch, depth: DepthSaid, shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column (J,) float64 on the teacher's depth map of the student's cells, whole numbers at cell centres, and
    which (J,) lie in the teacher's picture. shape: of the student's depth logits."""
    if batch.images is None or batch.image_affine is None:
        raise DataError("the batch does not say how its pictures were made (images, image_affine)")
    height, width = batch.images.shape[-2:]
    u = (col.double() + 0.5) * (width / shape[3])  # pixels of the student's picture, edges at whole numbers
    v = (row.double() + 0.5) * (height / shape[2])
    there = _square(depth.image_affine) @ torch.linalg.inv(_square(batch.image_affine))  # student's -> teacher's
    a = there.to(u.device)[picture]
    x = a[:, 0, 0] * u + a[:, 0, 1] * v + a[:, 0, 2]
    y = a[:, 1, 0] * u + a[:, 1, 1] * v + a[:, 1, 2]
    x, y = _unrounded(x), _unrounded(y)
    inside = (x >= 0) & (x < depth.image_size[0]) & (y >= 0) & (y < depth.image_size[1])
    return y / depth.stride - 0.5, x / depth.stride - 0.5, inside


def _unrounded(pixel: Tensor) -> Tensor:
    """Halves of a pixel that rounding of the affines moved by a millionth, as they were: equal pictures compare cell by
    cell to the last bit."""
    near = (pixel * 2).round() / 2
    return torch.where((pixel - near).abs() < 1e-6, near, pixel)


def _square(affine: Tensor) -> Tensor:
    """(B, cameras, 2, 3) -> (B * cameras, 3, 3) float64."""
    flat = affine.double().flatten(0, 1)
    last = torch.tensor([0.0, 0.0, 1.0], dtype=flat.dtype, device=flat.device).expand(len(flat), 1, 3)
    return torch.cat([flat, last], dim=1)


def _stride(logits: Tensor, batch: Batch) -> int:
    assert batch.images is not None
    return batch.images.shape[-1] // logits.shape[-1]


def overlap_shares(teacher_edges: Tensor, edges: Tensor) -> Tensor:
    """(D_teacher, D) float32: the share of each teacher's bin, taken as evenly filled, that lies in each student's."""
    low = torch.maximum(teacher_edges[:-1, None], edges[None, :-1])
    high = torch.minimum(teacher_edges[1:, None], edges[None, 1:])
    return ((high - low).clamp(min=0) / teacher_edges.diff()[:, None]).float()


def needs_of(options: LgkdDepthOptions) -> TermNeeds:
    """What the term reads under these options."""
    from_batch = ("images", "image_affine", *(("depth_points",) if options.where == "lidar" else ()))
    return TermNeeds(("depth",), (), ("depth_logits",), batch=from_batch)


def _written(edges: Tensor) -> str:
    return f"{len(edges) - 1} bins of {float(edges[0]):g}..{float(edges[-1]):g} m"
