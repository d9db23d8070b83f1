"""The embedded server in several processes. Their responses are tested in `test_server.py`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tiny
from serving import children_of, named, serving
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import Replicas
from sfumato.cloud.metrics import Siblings
from sfumato.device import Client
from sfumato.errors import ServingError

TOKEN = "s3cret"


@pytest.mark.parametrize(("text", "least", "most"), [("1", 1, 1), ("4", 4, 4), ("1-8", 1, 8)])
def test_replicas(text: str, least: int, most: int) -> None:
    assert Replicas.parse(text) == Replicas(least, most)


@pytest.mark.parametrize("text", ["0", "-1", "", "two", "4-2", "1-", "1-2-3"])
def test_replicas_that_make_no_sense(text: str) -> None:
    with pytest.raises(ServingError, match="2 or 1-4"):
        Replicas.parse(text)


def replicas_of(process: subprocess.Popen[str]) -> list[int]:
    return named(children_of(process.pid), "spawn_main")


def metrics(url: str) -> dict[str, float]:
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def answered(url: str) -> dict[str, float]:
    """Images that each replica has answered."""
    key = 'sfumato_images_total{{model="tiny",replica="{}",version="1"}}'
    counted = metrics(url)
    return {number: counted.get(key.format(number), 0.0) for number in "01"}


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_all_answer_and_any_tells_what_all_have_counted(tiny_bundles: tuple[Bundle, Bundle]) -> None:
    obfuscator, classifier = tiny_bundles
    with serving(classifier.path, "--replicas", 2, SFUMATO_TOKEN=TOKEN) as (said, process):
        assert len(replicas_of(process)) == 2
        for _ in range(40):  # each client is a connection, and the kernel deals connections out
            with Client(said["url"], obfuscator, token=TOKEN) as client:
                client.classify(tiny.image(0))
        several = [answered(said["url"]) for _ in range(6)]
        assert all(one == several[0] for one in several), "the same, whoever is asked"
        assert sum(several[0].values()) == 40 and min(several[0].values()) > 0


def test_a_killed_replica_is_not_noticed_and_replaced(tiny_bundles: tuple[Bundle, Bundle]) -> None:
    obfuscator, classifier = tiny_bundles
    images = [tiny.image(seed) for seed in range(4)]
    with serving(classifier.path, "--replicas", 2, SFUMATO_TOKEN=TOKEN) as (said, process):
        before = replicas_of(process)
        with Client(said["url"], obfuscator, token=TOKEN) as client, ThreadPoolExecutor(12) as pool:
            expected = [client.classify(image).label for image in images]
            responses = [pool.submit(client.classify, images[index % 4]) for index in range(100)]
            os.kill(before[0], signal.SIGKILL)
            responses += [pool.submit(client.classify, images[index % 4]) for index in range(100)]
            assert [response.result().label for response in responses] == 50 * expected
        wait_for("no new replica came", lambda: len(set(replicas_of(process)) - {before[0]}) == 2)


def test_a_hangup_reloads_all_of_them(tmp_path: Path, tiny_bundles: tuple[Bundle, Bundle]) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_bundles[1].path, models / "tiny" / "1")
    with serving("--models", models, "--replicas", 2) as (said, process):
        shutil.copytree(tiny_bundles[1].path, models / "tiny" / "2")
        process.send_signal(signal.SIGHUP)

        def versions() -> set[str]:
            found = set()
            for _ in range(12):
                with urllib.request.urlopen(f"{said['url']}/v2/models/tiny", timeout=10) as response:
                    found.add(json.load(response)["versions"][0])
            return found

        wait_for("not all of them have the new version", lambda: versions() == {"2"})


def test_they_do_not_outlive_their_parent(tmp_path: Path, tiny_bundles: tuple[Bundle, Bundle]) -> None:
    command = [sys.executable, "-m", "sfumato", "serve", str(tiny_bundles[1].path), "--replicas", "2", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed process leaves its folder behind
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline()
    left = replicas_of(process)
    assert len(left) == 2
    process.kill()
    process.wait()
    wait_for("they are still there", lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_no_new_connection_is_taken_while_the_last_requests_finish(tiny_bundles: tuple[Bundle, Bundle]) -> None:
    with serving(tiny_bundles[1].path, "--replicas", 2, "--linger", 0, "--grace", 20) as (said, process):
        address = ("127.0.0.1", int(said["url"].rpartition(":")[2]))
        with socket.create_connection(address) as under_way:
            under_way.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)

            def refused() -> bool:
                try:
                    socket.create_connection(address, timeout=1).close()
                except ConnectionRefusedError:
                    return True
                return False

            wait_for("the port is still open", refused)
            assert process.poll() is None, "it waits for the request under way"


def test_a_replica_that_never_starts_again_is_given_up(tmp_path: Path, tiny_bundles: tuple[Bundle, Bundle]) -> None:
    obfuscator, classifier = tiny_bundles
    folder = tmp_path / "bundle"
    shutil.copytree(classifier.path, folder)
    with serving(folder, "--replicas", 2, said_of_itself=(errors := [])) as (said, process):
        before = replicas_of(process)
        (folder / "bundle.json").write_text("{")
        os.kill(before[0], signal.SIGKILL)
        wait_for("it is tried forever", lambda: any("continue without it" in line for line in errors))
        for _ in range(12):
            with Client(said["url"], obfuscator, retries=0) as client:
                client.classify(tiny.image(0))
        assert replicas_of(process) == before[1:]


def test_a_taken_port_is_not_shared_with_strangers(tiny_bundles: tuple[Bundle, Bundle]) -> None:
    with serving(tiny_bundles[1].path, "--replicas", 2) as (said, _):
        command = [sys.executable, "-m", "sfumato", "serve", str(tiny_bundles[1].path), "--replicas", "2"]
        done = subprocess.run(
            [*command, "--port", said["url"].rpartition(":")[2]], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1 and "cannot listen" in done.stderr and "Traceback" not in done.stderr


def test_a_sibling_that_has_gone_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    text = b"# HELP cats_total Cats.\n# TYPE cats_total counter\ncats_total 3.0\n"
    one, another = Siblings(tmp_path, 0), Siblings(tmp_path, 2)

    async def told_by_one() -> bytes:
        async with one.sharing(lambda: text), another.sharing(lambda: text):
            return await one.merged(text)

    told = asyncio.run(told_by_one())
    head = text.decode().splitlines()[:2]
    assert told.decode().splitlines() == [*head, 'cats_total{replica="0"} 3.0', 'cats_total{replica="2"} 3.0']
