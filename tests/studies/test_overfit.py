"""What decides an overfit: the frames chosen, the ceilings, the norms; and that the claims of part 4 can be made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.layout import frames_place
from cache.store import FrameStore
from models.build import build_detector
from studies import overfit as study
from studies import simulated_cache
from studies.claims import part4
from studies.demo import DemoWorld
from studies.overfit import annotations_as_detections, overfit, targets_decoded, telling_frames
from studies.scoring import score
from tests.models.synthetic import boxes_of, synthetic_batch
from tests.trainer.synthetic import TINY_TEACHER, write_frames
from trainer.recipe import make_recipe


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("overfit") / "cache"
    write_frames(root, boxes=(14,))
    return root


@pytest.fixture(scope="module")
def store(cache: Path) -> FrameStore:
    return FrameStore(frames_place(cache))


def test_a_simulated_cache_is_kept_for_its_world_and_made_anew_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def simulate(out: Path, *, seed: int, **_: object) -> None:
        made.append(seed)
        out.mkdir()

    monkeypatch.setattr("studies.simulation.simulate_with_progress", simulate)
    monkeypatch.setattr(
        simulated_cache, "cache_frames", lambda data, version, cache, options: cache.mkdir(exist_ok=True)
    )
    for seed, expected in ((1, [1]), (1, [1]), (2, [1, 2])):
        found = simulated_cache.simulated_cache(tmp_path / "world", DemoWorld(seed=seed))
        assert found == tmp_path / "world" / "cache" and made == expected
        (found / f"of-{seed}").touch()
    assert [path.name for path in found.iterdir()] == ["of-2"]


def counts(*rows: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Frame -> objects of each class, from the ids of the classes that are there."""
    return {i: np.bincount(row, minlength=len(DETECTION_CLASSES)) for i, row in enumerate(rows)}


class Scenes:
    """A frame store of two frames a scene."""

    root = "here"

    def scene_of(self, row: int) -> str:
        return str(row // 2)


def test_telling_frames_hold_every_class_and_are_of_different_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    there = counts((0, 1), (0, 1, 2, 3, 4), (5,), (5, 5, 5, 6), (7, 8), (0, 1, 2), (9,), (1,))
    monkeypatch.setattr(study, "_counted", lambda _, row: there[row])
    assert telling_frames(Scenes(), range(8)) == [1, 3, 4, 6]
    with pytest.raises(DataError, match=r"barrier missing; simulate more scenes"):
        telling_frames(Scenes(), range(8), count=3)
    with pytest.raises(DataError, match="5 frames of different scenes were asked for, there are 4"):
        telling_frames(Scenes(), range(8), count=5)


def test_annotations_are_found_perfectly_where_their_class_is_there(store: FrameStore) -> None:
    rows = store.key_rows("train")
    metrics = score(store, rows, annotations_as_detections(store, rows))
    there = {DETECTION_CLASSES[i] for row in rows for i in np.flatnonzero(study._counted(store, row))}
    assert len(there) >= 6
    for name in DETECTION_CLASSES:
        assert metrics.class_ap(name) == pytest.approx(1.0 if name in there else 0.0), name


def test_targets_of_a_head_decode_to_the_boxes_and_coarser_cells_lose_some() -> None:
    torch.manual_seed(0)
    batch = synthetic_batch(frames=2, objects=3)
    boxes, labels = boxes_of(torch.Generator().manual_seed(3), 2)
    boxes[:, :2] = torch.tensor([[10.1, 10.1], [12.5, 10.1]])  # two cells of 1.6 m, one of 3.2 m
    batch = dataclasses.replace(batch, boxes=[boxes, batch.boxes[1]], labels=[labels * 0 + 8, batch.labels[1]])
    found = []
    for cell_m in (0.4, 0.8):
        config = {"preset": "centerpoint-pillar-tiny", "pillars": {"cell_m": cell_m}, "head": {"circle_nms_m": {}}}
        found.append(targets_decoded(build_detector(config).head, batch)[batch.tokens[0]])
    strong = [frame.scores > 0.9 for frame in found]
    assert [int(s.sum()) for s in strong] == [2, 1]
    order = np.argsort(found[0].boxes_lidar[strong[0]][:, 0])
    np.testing.assert_allclose(found[0].boxes_lidar[strong[0]][order][:, :6], boxes[:, :6], atol=1e-4)


def test_an_overfit_tells_scores_beside_ceilings(cache: Path, store: FrameStore) -> None:
    rows = store.key_rows("train")[:2]
    values = {"model": TINY_TEACHER, "data": {"split": "train"}, "train": {"steps": 2, "lr": 1e-3, "precision": "fp32"}}
    result = overfit(make_recipe(values, "a test", "small"), str(cache), rows)
    assert result.steps == 2 and result.objects > 5 and np.isfinite(result.loss)
    assert result.scores["mAP"] < result.head_ceiling["mAP"] <= result.ceiling["mAP"] + 1e-6
    assert json.loads(json.dumps(result.to_dict()))["preset"] == "small"


def test_every_tiny_preset_has_both_claims_and_recipes() -> None:
    names = {claim.name for claim in part4.CLAIMS}
    for preset in part4.TRIALS:
        assert {f"overfit-{preset}", f"learn-{preset}"} <= names
        assert part4.overfit_recipe(preset).train.batch == study.FRAMES
        assert part4.learning_recipe(preset).data.bev_augmentation.flip_x == 0.5
    assert len(names) == len(part4.CLAIMS)
