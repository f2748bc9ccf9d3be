"""The contract: frames, grids, fields, manifests and the code that reads and verifies stores.

Importing this package needs numpy, numcodecs and google-crc32c only, so that a reader in another stack stays light;
the one module that writes shards (`cache.tar_writer`) imports webdataset and is imported by writers alone.
"""

from cache.errors import BevcaskError
from cache.frame import CAMERA_CHANNELS, Camera, Detections, Frame, GroundTruth, Pose
from cache.grid import BevGrid

__all__ = ["CAMERA_CHANNELS", "BevGrid", "BevcaskError", "Camera", "Detections", "Frame", "GroundTruth", "Pose"]
