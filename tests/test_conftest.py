"""The room that all tests run in is what it says."""

import os
import socket

import pytest
import torch

from tests.conftest import ReachedOut


def test_there_is_no_network_but_this_machine() -> None:
    with socket.socket() as s, pytest.raises(ReachedOut, match=r"192\.0\.2\.1"):
        s.connect(("192.0.2.1", 80))
    with pytest.raises(ReachedOut, match="example"):
        socket.getaddrinfo("model.example", 443)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_one_thread_one_seed_offline() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(0)).item()
