"""Finished stores, written once for all tests of this room; tests that damage one take a copy."""

from __future__ import annotations

import gc
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cache.s3_server import BUCKET, environment, serving
from tests.cache.stores import KINDS, ZARR, StorePlan, frame_plan, plan_of, teacher_plan, write_store

# No test here fails for being slow on a busy machine; a failure prints what reproduces it.
settings.register_profile("cache", deadline=None, print_blob=True)
settings.load_profile("cache")


@pytest.fixture(scope="package", autouse=True)
def _quick_fsync() -> Iterator[None]:
    """Hundreds of small stores are written here; that fsync is called, when and on what, is test_files' to check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture(scope="package")
def frames_root(_quick_fsync: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames") / "store"
    write_store(root, frame_plan())
    return root


@pytest.fixture(scope="package")
def teacher_root(_quick_fsync: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teacher") / "store"
    write_store(root, teacher_plan())
    return root


@pytest.fixture(scope="package")
def zarr_root(_quick_fsync: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zarr") / "store"
    write_store(root, teacher_plan(format=ZARR))
    return root


@pytest.fixture(params=KINDS, ids=[f"{kind}-{layout.name}" for kind, layout in KINDS])
def plan(request: pytest.FixtureRequest) -> StorePlan:
    """The plan of a frame store, of a teacher store, and of one in Zarr."""
    return plan_of(*request.param)


@pytest.fixture
def whole(plan: StorePlan, frames_root: Path, teacher_root: Path, zarr_root: Path) -> Path:
    """The finished store of `plan`."""
    if plan.format == ZARR:
        return zarr_root
    return frames_root if plan.kind == "frames" else teacher_root


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole` to do harm to."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def collect_garbage() -> Iterator[Callable[[], None]]:
    """Collects what became garbage in this test: all that was there before is passed over, which takes a second."""
    gc.collect(0)
    gc.freeze()
    yield lambda: gc.collect() and None
    gc.unfreeze()


@pytest.fixture
def damaged(frames_root: Path, tmp_path: Path) -> Path:
    """A copy of the frame store to do harm to."""
    return Path(shutil.copytree(frames_root, tmp_path / "damaged"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The endpoint of an S3 server with one bucket, in the environment of all that is started from here on."""
    import s3fs

    with serving() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield endpoint
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_root(s3_endpoint: str) -> str:
    """An s3:// URL with nothing below it yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
