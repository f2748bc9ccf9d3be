"""Where the peers come from: this environment, or a folder of the benchmark's own that pip fills on demand.

mosaicml-streaming and litdata ask for torchvision, which has no build beside a torch without CUDA, and the first also
for five clouds' clients that reading a local folder never imports. So they are installed without dependencies, with the
few that they do import, beside the environment and not into it; versions are those of constraints.txt.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from studies.benches.stream_contender import Peer

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    "streaming": (
        "mosaicml-streaming brotli python-snappy cramjam zstd xxhash catalogue transformers tokenizers "
        "huggingface-hub regex pyyaml tqdm requests filelock"
    ).split(),
    "litdata": "litdata lightning-utilities boto3 botocore jmespath s3transfer requests filelock tqdm".split(),
}


def installed(peer: type[Peer]) -> bool:
    """Whether the peer's package can be imported."""
    return not peer.package or find_spec(peer.package) is not None


def command(folder: Path, package: str) -> list[str]:
    """The pip command that puts a peer into `folder`."""
    wanted = PACKAGES[package]
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    return [*pip, "--target", str(folder / package), "-c", str(ROOT / "constraints.txt"), *wanted]


def provide(peer: type[Peer], folder: Path, console: Console) -> str | None:
    """Makes the peer importable: from this environment, from `folder`, or by pip into it. None, or why it is not
    there and the command that installs it."""
    _look_in(folder / peer.package)
    if installed(peer):
        return None
    console.print(f"[dim]{peer.name}: installing into {folder / peer.package} ...[/dim]", soft_wrap=True)
    done = subprocess.run(command(folder, peer.package), capture_output=True, text=True, check=False)
    _look_in(folder / peer.package)
    if installed(peer):
        return None
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"not installed ({reason}); install it with: {' '.join(command(folder, peer.package))}"


def _look_in(folder: Path) -> None:
    """Appended: what our own environment has comes first."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
