"""The metric from stores to figures: frames, truth and boxes in portions, read, turned and matched at the same time.

Reads only the members that the metric needs, neighbouring frames by one ranged read, straight into arrays: no record is
made of any frame. A few threads take portions in turn, so that one reads while another matches; memory is theirs and 20
bytes a prediction, whatever the split's size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

import numpy as np

from cache.frame import Detections, Poses
from cache.store import FrameStore, TeacherStore
from evaluation.array_metric import PORTION, ArrayMetric
from evaluation.box_arrays import BoxArrays, Places, global_arrays, truth_arrays
from evaluation.boxes import joined_to_global
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metrics import Metrics
from evaluation.submission import limited
from evaluation.submission_file import SubmissionArrays
from evaluation.subsets import EVERYTHING, Subset

T = TypeVar("T")
THREADS = 4  # at most; beyond some four the interpreter's lock is the limit


def evaluate_teacher(
    store: FrameStore,
    rows: Sequence[int],
    teacher: TeacherStore,
    teacher_rows: Sequence[int],
    *,
    config: MetricConfig = CVPR_2019,
    subset: Subset = EVERYTHING,
) -> Metrics:
    """`array_metric.evaluate` of what a teacher store says, to the bit. teacher_rows: its rows of the same frames
    (`cache.same_frames`). Raises DataError naming sample and box where a box is not sound, and what reading raises."""
    tokens = [store.token(row) for row in rows]
    metric = ArrayMetric(tokens, config, subset)

    def add(part: slice) -> None:
        ego, lidar = store.poses_of(rows[part])
        said, offsets = teacher.detections_of(teacher_rows[part])
        count = np.diff(offsets)
        for i in np.nonzero(count > config.max_boxes_per_sample)[0]:
            one = slice(offsets[i], offsets[i + 1])
            crowded = Detections(said.boxes_lidar[one], said.scores[one], said.labels[one])
            limited(tokens[part][i], crowded, keep_top=False, most=config.max_boxes_per_sample)
        predicted = joined_to_global(tokens[part], ego, lidar, said, count)
        boxes = global_arrays(predicted, np.repeat(np.arange(len(count)), count))
        metric.add_boxes(tokens[part], *_truth_of(store, rows[part], ego), boxes)

    in_threads(add, portions(len(rows)))
    return metric.result()


def evaluate_read(
    store: FrameStore,
    rows: Sequence[int],
    submission: SubmissionArrays,
    *,
    config: MetricConfig = CVPR_2019,
    subset: Subset = EVERYTHING,
) -> Metrics:
    """`array_metric.evaluate_submission` of a file's boxes on these rows, to the bit; what it says of other frames is
    left out."""
    row_of = {store.token(row): row for row in rows}
    metric = ArrayMetric([token for token in submission.tokens if token in row_of], config, subset)

    def add(portion: tuple[list[str], BoxArrays]) -> None:
        tokens, boxes = portion
        counted = np.array([token in row_of for token in tokens], bool)
        if not counted.all():
            boxes = boxes.take(counted[boxes.frame])
            boxes = replace(boxes, frame=(np.cumsum(counted) - 1)[boxes.frame])
            tokens = [token for token in tokens if token in row_of]
        here = [row_of[token] for token in tokens]
        metric.add_boxes(tokens, *_truth_of(store, here, store.poses_of(here)[0]), boxes)

    in_threads(add, submission.portions)
    return metric.result()


def _truth_of(store: FrameStore, rows: Sequence[int], ego: Poses) -> tuple[Places, BoxArrays]:
    """Where these frames were taken, and their objects."""
    truth, boxes, racks = store.truth_of(rows)
    frames = np.arange(len(rows))
    places = Places(ego.translation, truth.racks_global, np.repeat(frames, np.diff(racks)))
    return places, truth_arrays([truth], np.repeat(frames, np.diff(boxes)))


def portions(count: int) -> Iterator[slice]:
    """Of `count` frames, those that are matched at once."""
    return (slice(start, start + PORTION) for start in range(0, count, PORTION))


def in_threads(work: Callable[[T], None], parts: Iterable[T]) -> None:
    """Does the work for every part, several at a time; the first part that fails ends it."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        asked = [pool.submit(work, part) for part in parts]
        done = wait(asked, return_when=FIRST_EXCEPTION).done
        pool.shutdown(wait=False, cancel_futures=True)
    for one in asked:
        if one in done:
            one.result()
