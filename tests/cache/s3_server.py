"""An S3-compatible server (moto) on loopback, in a process of its own that ends with its parent."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import s3fs

BUCKET = "bevcask-test"
# moto looks whether an object is there and then writes it, in threads: S3 does both at once, and so must this server
SERVE = """
import logging, sys, threading
import moto.s3.responses
from moto.server import ThreadedMotoServer
one_at_a_time, put = threading.Lock(), moto.s3.responses.S3Response._key_response_put
def put_alone(self, *arguments):
    with one_at_a_time:
        return put(self, *arguments)
moto.s3.responses.S3Response._key_response_put = put_alone
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The endpoint of a server that runs as long as the block. What fsspec keeps of S3 is dropped before and after: it
    would lead to the server before this one."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        port = next((line.split()[1] for line in lines if line.startswith("port ")), None)
        assert port is not None, "the S3 server did not start"
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            process.kill()


def environment(endpoint: str) -> dict[str, str]:
    """What s3fs and boto read to find the server, and nothing of the machine's own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
