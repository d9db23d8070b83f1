"""Replicas on Ray Serve. Their responses are tested with the embedded server's tests, in `test_server.py`."""

from __future__ import annotations

import os
import signal
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tiny
from commands import sfumato
from serving import NEEDS_RAY, children_of, named, on_ray
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client
from sfumato.errors import EndpointRefused

TOKEN = "s3cret"
LISTENING = "0A"


def test_options_that_are_for_another_engine(classifier_bundle: Bundle) -> None:
    for options, expected in (
        (["--replicas", "1-2"], "--engine ray"),
        (["--address", "127.0.0.1:1"], "--engine ray"),
        (["--engine", "ray", "--replicas", "none"], "2 or 1-4"),
        (["--engine", "ray", "--tls-cert", "cert.pem"], "no TLS"),
    ):
        done = sfumato("serve", classifier_bundle.path, *options, code=1)
        assert expected in done.stderr.splitlines()[-1]


def ports_on_every_interface(pids: list[int]) -> set[int]:
    """What the processes listen on, apart from the loopback."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(str(file.readlink()))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            if state == LISTENING and f"socket:[{inode}]" in sockets and not int(address, 16):
                found.add(int(port, 16))
    return found


@NEEDS_RAY
def test_a_killed_replica_is_not_noticed_and_replaced(classifier_bundle: Bundle, obfuscator_bundle: Bundle) -> None:
    images = [tiny.image(seed) for seed in range(4)]
    with on_ray(classifier_bundle.path, "--replicas", 2, SFUMATO_TOKEN=TOKEN) as (said, process):
        url = said["url"]
        assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"
        with Client(url, obfuscator_bundle, token="wrong") as client, pytest.raises(EndpointRefused, match="token"):
            client.classify(images[0])
        replicas = named(children_of(process.pid), "ray::ServeReplica")
        assert len(replicas) == 2
        with Client(url, obfuscator_bundle, token=TOKEN) as client, ThreadPoolExecutor(4) as pool:
            expected = [client.classify(image).label for image in images]
            responses = [pool.submit(client.classify, images[index % 4]) for index in range(200)]
            os.kill(replicas[0], signal.SIGKILL)
            responses += [pool.submit(client.classify, images[index % 4]) for index in range(200)]
            assert [response.result().label for response in responses] == 100 * expected
        deadline = time.monotonic() + 60
        while len(now := named(children_of(process.pid), "ray::ServeReplica")) < 2 or replicas[0] in now:
            assert time.monotonic() < deadline, "no new replica came"
            time.sleep(0.2)


@NEEDS_RAY
def test_what_ray_opens_to_others_wants_a_token(classifier_bundle: Bundle) -> None:
    grpc = pytest.importorskip("grpc")
    with on_ray(classifier_bundle.path) as (_, process):
        below = [process.pid, *children_of(process.pid)]
        proxies = ports_on_every_interface(named(below, "haproxy"))
        others = ports_on_every_interface(below) - proxies
        assert len(proxies) <= 2 and len(others) <= 1, "HAProxy's counts, and a port of the replica"
        for port in others:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as caught:
                    ask(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
