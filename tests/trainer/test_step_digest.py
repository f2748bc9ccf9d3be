from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from models.pictures import ImageAugment
from trainer.augment import BevAugment, FrameAugment
from trainer.step_digest import frame_digest, step_digest

AUGMENT = FrameAugment(BevAugment(0.1, 1.05, True, False), (ImageAugment(), ImageAugment(resize=0.9, flip=True)))


def others_than(value: Any) -> list[Any]:
    """The next value to it; of a tuple one for each of its numbers."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple):
        return [(*value[:i], float(np.nextafter(v, 2)), *value[i + 1 :]) for i, v in enumerate(value)]
    return [float(np.nextafter(value, 2))]


def test_every_parameter_and_every_input_byte_changes_a_frame_s_digest() -> None:
    inputs = [np.arange(4, dtype=np.float32), np.zeros((2, 2), np.uint8)]
    digests = [frame_digest("token", AUGMENT, map(memoryview, inputs))]  # type: ignore[arg-type]
    assert digests[0] == frame_digest("token", AUGMENT, [part.tobytes() for part in inputs])
    digests += [frame_digest("token", AUGMENT), frame_digest("tokem", AUGMENT), frame_digest("token", AUGMENT, [b""])]
    digests += [frame_digest("token", AUGMENT, [b"ab", b"c"]), frame_digest("token", AUGMENT, [b"a", b"bc"])]
    for field in dataclasses.fields(BevAugment):
        for other in others_than(getattr(AUGMENT.bev, field.name)):
            bev = dataclasses.replace(AUGMENT.bev, **{field.name: other})
            digests.append(frame_digest("token", dataclasses.replace(AUGMENT, bev=bev)))
    for camera in range(2):
        for field in dataclasses.fields(ImageAugment):
            images = list(AUGMENT.images)
            [other] = others_than(getattr(images[camera], field.name))
            images[camera] = dataclasses.replace(images[camera], **{field.name: other})
            digests.append(frame_digest("token", dataclasses.replace(AUGMENT, images=tuple(images))))
    digests.append(frame_digest("token", dataclasses.replace(AUGMENT, images=AUGMENT.images[::-1])))
    assert len(set(digests)) == len(digests)


def test_a_step_s_digest_is_of_its_frames_in_order() -> None:
    frames = [frame_digest(token, AUGMENT) for token in "abc"]
    whole = step_digest(frames)
    assert whole == step_digest(iter([*frames[:2], *frames[2:]]))  # ranks' parts one after another
    others = {step_digest(frames[::-1]), step_digest(frames[:2]), step_digest([])}
    assert len(others) == 3
    assert whole not in others
    with pytest.raises(ValueError, match="of 3 bytes, expected 16"):
        step_digest([b"abc"])


def test_digests_never_change_between_releases() -> None:
    assert step_digest([frame_digest("token", AUGMENT, [b"abc"])]) == "4defc50dc3d13953306a75e931d1db1a"
