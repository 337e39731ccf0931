"""What every test runs under: one thread, one seed, the same examples each time, and no network.

The guard sees this process only: a command that a test starts is a user's own.
"""

import ipaddress
import os
import random
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")  # read at import

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("qkv", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("qkv")


class ReachedOut(BaseException):
    """Not an Exception, so that no loader can take it for a network that is down."""


def _no_network(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # a path: a Unix socket
    else:
        return
    if host is not None and not _is_here(os.fsdecode(host)):
        raise ReachedOut(f"a test reached for the network: {event} {host!r}")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost")


sys.addaudithook(_no_network)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
