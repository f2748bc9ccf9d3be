"""How exactly stored cells stand in for the live teacher: BEVDistill's dense loss and its gradients, both ways.

The reference is the loss written down plainly over whole maps in float64, with a live teacher's map; the other side is
the term as training calls it, in float32, on what a store gave. No way through the term's own gathering or sampling
leads into the reference: under a BEV augmentation it reads the student with torch's grid_sample at every cell.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.grid import BevGrid
from models.detector import Batch, DetectorOutput
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.bevdistill_dense import BevDistillDense


@dataclass(frozen=True)
class Agreement:
    """Relative differences of the term on stored cells from the reference: of the loss; of its gradient by the
    student's map, by the adaptor and by the student's weights (L2 norm of the difference over that of the reference).
    The difference of the map's gradients goes back to the student's weights as one vector, which is the same by
    linearity: two backward passes in fp32 differ by their own rounding, about 2e-6, whatever the teacher's source.

    residual: what the student still lacks, as a share of the teacher's spread: the weighted RMS of (student - teacher)
    over each channel's deviation, 1 for a student that always answers with the channel's mean.
    """

    loss: float
    map_gradient: float
    adaptor_gradient: float
    weights_gradient: float
    residual: float

    @property
    def gradient(self) -> float:
        """The largest of the three."""
        return max(self.map_gradient, self.adaptor_gradient, self.weights_gradient)

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "gradient": self.gradient}


def dense_loss(
    term: BevDistillDense, student: Tensor, teacher: Tensor, mask: Tensor, augmentation: Tensor | None = None
) -> Tensor:
    """The term's loss over whole maps, in the dtype of `student`.

    student: (B, C, H, W), in the augmented frame; teacher: (B, T, H, W) and mask (B, H, W), canonical; augmentation:
    (B, 4, 4), None for the identity. `term` must have been brought to the same dtype.
    """
    read = term.adaptor(student)  # (B, T, H, W)
    if augmentation is not None:
        places = _places(augmentation, term.grid)  # (B, H, W, 2), -1..1
        read = F.grid_sample(read, places, mode="bilinear", align_corners=False, padding_mode="border")
        mask = mask * ((places >= -1) & (places < 1)).all(dim=3)
    wanted = (teacher - term.teacher_mean[:, None, None]) / term.teacher_deviation[:, None, None]
    error = (read - wanted).square()
    per_cell = error.mean(dim=1) if term.options.reduce == "mean" else error.sum(dim=1)
    return term.weight * (mask * per_cell).sum() / mask.sum().clamp(min=1)


def _places(augmentation: Tensor, grid: BevGrid) -> Tensor:
    """(B, H, W, 2) float64 x, y in grid_sample's -1..1: where each cell's centre goes."""
    centres = torch.from_numpy(grid.centres())  # (H, W, 2)
    ones = torch.ones_like(centres[..., :1])
    moved = torch.einsum("bij,hwj->bhwi", augmentation.double(), torch.cat([centres, 0 * ones, ones], dim=2))[..., :2]
    low = torch.tensor([grid.x_min, grid.y_min], dtype=torch.float64)
    side = torch.tensor([grid.x_max - grid.x_min, grid.y_max - grid.y_min], dtype=torch.float64)
    return 2 * (moved - low) / side - 1


def compare(
    model: nn.Module,
    term: BevDistillDense,
    batch: Batch,
    cells: Sequence[TeacherCells],
    teachers: Sequence[Tensor],
    mask: Tensor,
    *,
    augmented: bool = False,
) -> list[Agreement]:
    """One `Agreement` for each pair of stored cells and live teacher map (B, T, H, W); the student runs once.

    The student runs in fp32 and in the mode it is in; mask: (B, H, W), the selector's weights; augmented: whether
    `batch` carries a BEV augmentation, which the reference then follows too.
    """
    exact = copy.deepcopy(term).double()
    with _own_convolutions():
        output: DetectorOutput = model(batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    out = []
    for stored, teacher in zip(cells, teachers, strict=True):
        student = output.bev.detach().requires_grad_()
        part = term(DetectorOutput(student, []), batch, TeacherSaid(term.grid, stored))[term.name]
        found, found_grads = _with_gradients(part.value(), student, term)
        reference = output.bev.detach().double().requires_grad_()
        augmentation = batch.bev_augmentation if augmented else None
        loss = dense_loss(exact, reference, teacher.double(), mask.double(), augmentation)
        wanted, wanted_grads = _with_gradients(loss, reference, exact)
        difference = found_grads[0].double() - wanted_grads[0]
        with _own_convolutions():
            through = [
                torch.autograd.grad(
                    output.bev, parameters, gradient.to(output.bev.dtype), retain_graph=True, allow_unused=True
                )
                for gradient in (difference, wanted_grads[0])
            ]
        out.append(
            Agreement(
                abs(found - wanted) / wanted,
                _relative(found_grads[:1], wanted_grads[:1]),
                _relative(found_grads[1:], wanted_grads[1:]),
                _norm(through[0]) / _norm(through[1]),
                residual_share(term, wanted),
            )
        )
    return out


def _own_convolutions() -> AbstractContextManager[None]:
    """torch's own convolutions for the student: oneDNN's fp32 backward pass writes out of bounds for some narrow ones
    (torch 2.13, AVX-512), and which implementation the student has is not what is compared."""
    return cast(AbstractContextManager[None], torch.backends.mkldnn.flags(enabled=False))  # type: ignore[no-untyped-call]


def residual_share(term: BevDistillDense, loss: float) -> float:
    """From the term's value to the residual over the teacher's spread; the term must standardise."""
    assert term.options.standardise
    per_channel = loss / term.weight / (1 if term.options.reduce == "mean" else len(term.teacher_mean))
    return float(per_channel**0.5)


def _with_gradients(loss: Tensor, student: Tensor, term: nn.Module) -> tuple[float, list[Tensor]]:
    inputs = [student, *term.parameters()]
    return float(loss.detach()), list(torch.autograd.grad(loss, inputs))


def _relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    if not wanted:
        return 0.0
    return _norm([f.double() - w.double() for f, w in zip(found, wanted, strict=True)]) / _norm(wanted)


def _norm(tensors: Sequence[Tensor | None]) -> float:
    """L2 norm in float64, all tensors as one vector."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors if tensor is not None) ** 0.5
