"""The stream benchmark's peers: other libraries' readers, each set up as its own documentation advises."""

from __future__ import annotations

from studies.benches.peers.litdata_peer import LitData
from studies.benches.peers.mds_peer import MosaicStreaming
from studies.benches.peers.npz_peer import NpzLoader
from studies.benches.peers.webdataset_peer import WebDatasetLoader
from studies.benches.stream_contender import Peer

PEERS: dict[str, type[Peer]] = {
    "mosaicml-streaming": MosaicStreaming,
    "litdata": LitData,
    "webdataset": WebDatasetLoader,
    "npz": NpzLoader,
}
