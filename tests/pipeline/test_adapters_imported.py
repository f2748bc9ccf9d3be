"""Teachers named by import path: docs/teachers.md's example runs, and what is not as the protocol says is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import BevcaskError, ConfigError, DataError
from cache.store import FrameStore, TeacherStore
from models.detector import Batch
from models.import_path import is_import_path
from pipeline.adapters.imported import load_imported
from pipeline.adapters.opening import open_teacher
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher, resolve_checkpoint
from studies.live_check import run_live

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "teachers.md").read_text()
EXAMPLE = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module `my_teachers` of the given text into a folder on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> None:
        (tmp_path / "my_teachers.py").write_text(text)
        monkeypatch.delitem(sys.modules, "my_teachers", raising=False)

    yield write
    sys.modules.pop("my_teachers", None)


@pytest.fixture
def example(module, tmp_path):
    """The page's module, and weights for it."""
    module(EXAMPLE)
    import my_teachers

    torch.manual_seed(0)
    torch.save(my_teachers.PointCounter().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_the_example_of_the_page_runs_through_the_pass(example, tmp_path, simulated_root):
    cache_frames(simulated_root, "v1.0-mini", tmp_path, options=FrameOptions(image_scale=0.1, points=True), workers=1)
    options = TeacherOptions("dense")
    cache_teacher(tmp_path, "mine", teacher="my_teachers:build", checkpoint=example, options=options, workers=1)
    store, frames = TeacherStore(tmp_path / "teachers" / "mine"), FrameStore(tmp_path / "frames")
    assert store.manifest.header["teacher"] == "my_teachers:build"
    assert store.manifest.header["adapter"] == "callable my_teachers:build"
    model = open_teacher(example, "my_teachers:build").model
    assert not model.training
    with torch.inference_mode():
        output = model(Batch(points=[torch.from_numpy(frames.points(0).copy())]))
    row = store.row_of(frames.tokens[0])
    np.testing.assert_allclose(store.cells(row).values.astype(np.float32).T, output.bev[0].flatten(1), atol=1e-2)
    np.testing.assert_allclose(store.detections(row).boxes_lidar, model.decode(output)[0].boxes_lidar)
    # A store's header is data: it alone makes nobody import and run what it names.
    with pytest.raises(ConfigError, match=r"if you trust that module to run here, add --callable my_teachers:build"):
        run_live(tmp_path, "mine", 1, checkpoint=example)
    [check] = run_live(tmp_path, "mine", 1, checkpoint=example, callable="my_teachers:build")
    assert check.held


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("bev_channels", "channels"), r"PointCounter without bev_channels \(the channels of"),
        (('    modality = "lidar"\n', ""), r"without modality"),
        (("BevGrid(-51.2, 51.2, -51.2, 51.2, 1.6)", "(64, 64)"), r"without grid \(the cache\.grid\.BevGrid"),
        (("def decode(", "def boxes("), r"without decode \(DetectorOutput -> list of Detections\)"),
        (
            ("self.bev_channels, 3, padding=1)", "self.bev_channels, 3)"),
            r"bev is \(2, 16, 62, 62\), expected \(2, 16, 64, 64\)",
        ),
        (('{"heatmap": ', '{"heat": '), r"heads must each have a 'heatmap' \(frames, classes, 64, 64\)"),
        (("torch.relu(", "0.0 / 0.0 * torch.relu("), r"raised ZeroDivisionError on a batch of two clouds"),
        (("torch.relu(", "float('nan') * torch.relu("), r"bev holds NaN"),
        (("return DetectorOutput(", "return dict("), r"gave a dict, expected models\.detector\.DetectorOutput"),
        (
            ("return [self.best_car(heat[0]) for heat in output.class_heat()]", "return []"),
            r"decode gave no list of one",
        ),
        (("def build(path):", "def build():"), r"must take one argument, the checkpoint's path"),
        (("def build(path):", "def make(path):"), r"my_teachers has no 'build'; its callables are .*make"),
        (("def build(path):", "build = 3\ndef make(path):"), r"'build' is no callable"),
        (("import numpy as np", "import numpie as np"), r"my_teachers needs the module 'numpie'"),
        (("import numpy as np", "import numpy as np\n1 / 0"), r"importing my_teachers raised ZeroDivisionError"),
    ],
)
def test_what_is_not_as_the_protocol_says_is_named_before_the_pass(change, words, example, module):
    assert EXAMPLE.count(change[0]) == 1 or change[0] in ("bev_channels", "torch.relu(", "import numpy as np")
    module(EXAMPLE.replace(*change))
    with pytest.raises(ConfigError, match=words) as caught:
        load_imported("my_teachers:build", example)
    assert "--teacher my_teachers:build" in str(caught.value)
    assert "\n" not in str(caught.value)


QUERIES = "import models.detector\nfrom models.detector import DetectorOutput"
SAID = "queries=models.detector.QueryOutput(*[torch.zeros(1, len(bev), 5, n) for n in (10, 10, 2)], bev[..., 0])"


def test_a_detector_of_queries_needs_no_heat_but_queries_of_the_right_shape(example, module):
    text = EXAMPLE.replace("from models.detector import DetectorOutput", QUERIES)
    text = text.replace("[self.best_car(heat[0]) for heat in output.class_heat()]", "[EMPTY] * len(output.bev)")
    text = text.replace(
        "\n\nclass PointCounter", "\nEMPTY = Detections(*map(np.zeros, ((0, 9), 0, 0)))\n\nclass PointCounter"
    )
    good = text.replace('heads=[{"heatmap": self.heat(bev)}]', f"heads=[], {SAID}")
    module(good)
    assert load_imported("my_teachers:build", example).bev_channels == 16
    module(good.replace("(10, 10, 2)", "(7, 10, 2)"))
    with pytest.raises(ConfigError, match=r"queries\.logits is \(1, 2, 5, 7\), expected \(layers, 2, queries, 10\)"):
        load_imported("my_teachers:build", example)
    module(text.replace('heads=[{"heatmap": self.heat(bev)}]', "heads=[]"))
    with pytest.raises(ConfigError, match="heads must each have a 'heatmap'"):
        load_imported("my_teachers:build", example)


def test_a_callable_that_fails_is_named_with_its_error_and_file(example, module):
    other = example.with_name("other.pt")
    torch.save({}, other)
    with pytest.raises(DataError, match=r"--teacher my_teachers:build: it raised RuntimeError for .*other\.pt: .*look"):
        load_imported("my_teachers:build", other)


def test_names_that_lead_nowhere_say_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"no module 'nowhere_at_all'; install it, or add its folder to PYTHONPATH"):
        open_teacher(tmp_path / "x", "nowhere_at_all.teachers:build")
    with pytest.raises(ConfigError, match=r"no module 'pipeline\.nothing'"):
        open_teacher(tmp_path / "x", "pipeline.nothing:build")
    with pytest.raises(ConfigError, match="give its weights: --checkpoint"):
        resolve_checkpoint("my_teachers:build", None)
    assert is_import_path("a.b_c:make") and is_import_path("a:b")
    assert not any(is_import_path(name) for name in ("demo", "centerpoint-voxel-0.1", "a:b:c", "a-b:c", "C:/x", "a:"))


def test_a_callable_of_a_camera_model_that_does_not_say_its_images_size_is_refused(
    example, module, simulated_root, tmp_path
):
    module(EXAMPLE.replace('modality = "lidar"', 'modality = "camera"'))
    cache_frames(simulated_root, "v1.0-mini", tmp_path, options=FrameOptions(image_scale=0.1, points=True), workers=1)
    with pytest.raises(BevcaskError, match=r"a camera model without config\['image_size'\]"):
        cache_teacher(tmp_path, "mine", teacher="my_teachers:build", checkpoint=example, workers=1)
