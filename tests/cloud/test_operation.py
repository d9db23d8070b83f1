"""The server as those who run it see it: what it counts and logs, and how it bears load, slow clients, and goodbyes."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from commands import sfumato
from sfumato import cloud, wire
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud.exchange import Exchange
from sfumato.device import Client
from sfumato.errors import ServingError

TOKEN = "s3cret"
INFER = "/v2/models/tiny/infer"
IMAGE = np.full((2, 3, 8, 8), 0.625, np.float32)
ENCODED = wire.encode_request(wire.InferRequest((wire.Tensor("input", IMAGE),)))


def netloc(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def address(url: str) -> tuple[str, int]:
    host, port = netloc(url).split(":")
    return host, int(port)


def ask(
    url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(netloc(url), timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def infer(url: str, path: str = INFER, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    return ask(url, "POST", path, ENCODED.body, {**ENCODED.headers(), **headers})


def metrics(url: str, **headers: str) -> dict[str, float]:
    text = ask(url, "GET", "/metrics", headers=headers)[1].decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


# --- what it counts and logs ----------------------------------------------------------------------


def test_metrics(classifier_bundle: Bundle) -> None:
    with cloud.running([cloud.ServedModel(classifier_bundle.path)]) as url:
        for _ in range(3):
            assert infer(url)[0] == 200
        assert ask(url, "POST", INFER, b"{")[0] == 400
        assert ask(url, "GET", "/v2/models/<script>")[0] == 404
        assert ask(url, "GET", "/metrics")[2]["Content-Type"].startswith("text/plain")
        told = metrics(url)
    of = 'model="tiny",version="1"'
    assert told['sfumato_requests_total{model="tiny",status="200",version="1"}'] == 3
    assert told['sfumato_requests_total{model="tiny",status="400",version="1"}'] == 1
    assert told['sfumato_requests_total{model="",status="404",version=""}'] == 1
    assert told[f"sfumato_images_total{{{of}}}"] == 6
    assert told[f"sfumato_request_seconds_count{{{of}}}"] == 3
    assert told[f"sfumato_batch_rows_sum{{{of}}}"] == 6
    assert told['sfumato_batch_rows_bucket{le="1.0",model="tiny",version="1"}'] == 0
    assert told['sfumato_batch_rows_bucket{le="2.0",model="tiny",version="1"}'] == 3
    assert told['sfumato_batch_rows_bucket{le="+Inf",model="tiny",version="1"}'] == 3
    assert told[f"sfumato_queue_requests{{{of}}}"] == told[f"sfumato_queue_rows{{{of}}}"] == 0
    assert told["sfumato_held_bytes"] == 0
    assert not any("script" in name for name in told)


def test_metrics_want_the_token(classifier_bundle: Bundle) -> None:
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], token=TOKEN) as url:
        assert ask(url, "GET", "/metrics")[0] == 401
        told = metrics(url, Authorization=f"Bearer {TOKEN}")
    assert told['sfumato_requests_total{model="",status="401",version=""}'] == 1


def test_a_line_for_each_request(classifier_bundle: Bundle) -> None:
    with process(classifier_bundle.path, "--access-log", "--log-format", "json", SFUMATO_TOKEN=TOKEN) as (url, server):
        infer(url, Authorization=f"Bearer {TOKEN}")
        infer(url)
        server.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in server.communicate(timeout=20)[1].splitlines()]
    good, refused = lines
    assert good.keys() == {"time", "level", "model", "version", "rows", "status", "ms", "bytes_in", "bytes_out"}
    assert (good["model"], good["version"], good["rows"], good["status"]) == ("tiny", "1", 2, 200)
    assert good["bytes_in"] == len(ENCODED.body) and 0 < good["ms"] < 10_000
    assert (refused["model"], refused["status"], refused["bytes_in"]) == (None, 401, 0)
    assert not any(secret in json.dumps(lines) for secret in (TOKEN, "0.625"))


def test_the_log_as_text(classifier_bundle: Bundle) -> None:
    with process(classifier_bundle.path, "--access-log") as (url, server):
        infer(url)
        server.send_signal(signal.SIGTERM)
        (line,) = server.communicate(timeout=20)[1].splitlines()
    assert " model=tiny version=1 rows=2 status=200 ms=" in line


# --- tokens, rates, and who asked -----------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2])
def test_tokens_change_while_it_serves(classifier_bundle: Bundle, tmp_path: Path, replicas: int) -> None:
    """By a signal, and without one; an old and a new token overlap."""
    tokens, audit = tmp_path / "tokens", tmp_path / "audit.jsonl"
    tokens.write_text("phones old-1\n")
    options = ("--token-file", tokens, "--audit-log", audit, "--replicas", replicas)
    with process(classifier_bundle.path, *options) as (url, server):

        def statuses(*given: str) -> set[tuple[int, ...]]:
            """Of several connections, which different replicas serve."""
            return {tuple(infer(url, Authorization=f"bearer {token}")[0] for token in given) for _ in range(6)}

        assert statuses("old-1", "new-2") == {(200, 401)}
        tokens.write_text("phones old-1\nphones new-2\n")
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: statuses("old-1", "new-2") == {(200, 200)})
        tokens.write_text("phones new-2\n")
        wait_for(lambda: statuses("old-1", "new-2") == {(401, 200)})
        audit.rename(tmp_path / "audit.1")
        server.send_signal(signal.SIGHUP)
        wait_for(audit.exists)
    lines = [json.loads(line) for line in (tmp_path / "audit.1").read_text().splitlines()]
    assert {(line["token"], line["status"]) for line in lines} == {("phones", 200), (None, 401)}


def test_the_audit_log(classifier_bundle: Bundle, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], token=TOKEN, audit_log=audit) as url:
        infer(url, Authorization=f"Bearer {TOKEN}")
        infer(url)
        ask(url, "GET", "/v2/models/tiny", headers={"Authorization": f"Bearer {TOKEN}"})
        ask(url, "GET", "/v2/health/live")
    good, refused, asked = (json.loads(line) for line in audit.read_text().splitlines())
    assert good.keys() == {"time", "token", "address", "model", "version", "rows", "status"}
    assert list(good.values())[1:] == ["token-1", "127.0.0.1", "tiny", "1", 2, 200]
    assert (refused["token"], refused["model"], refused["status"]) == (None, None, 401)
    assert (asked["token"], asked["rows"], asked["status"]) == ("token-1", 0, 200)
    assert TOKEN not in audit.read_text() and "0.625" not in audit.read_text()
    assert audit.stat().st_mode & 0o077 == 0


def test_an_audit_log_that_cannot_be_written_stops_nothing(
    classifier_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], audit_log="/dev/full") as url:
        assert [infer(url)[0] for _ in range(3)] == [200] * 3
    assert caplog.text.count("audit log") == 1
    with (
        pytest.raises(ServingError, match="audit log"),
        cloud.running([cloud.ServedModel(classifier_bundle.path)], audit_log="/no/such/folder/file"),
    ):
        pass


def test_each_token_has_its_rate(classifier_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a a-1\nb b-1\n")
    options: dict[str, Any] = {"token_file": tmp_path / "tokens", "limits": cloud.Limits(max_rate=0.1)}
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], **options) as url:
        assert infer(url, Authorization="Bearer a-1")[0] == 200
        status, _, headers = infer(url, Authorization="Bearer a-1")
        assert status == 429 and 10 < int(headers["Retry-After"]) <= 20, "two images, at 0.1 a second"
        assert infer(url, Authorization="Bearer b-1")[0] == 200
        assert ask(url, "GET", "/v2", headers={"Authorization": "Bearer a-1"})[0] == 200


# --- load and ill will ----------------------------------------------------------------------------


def test_bytes_in_memory_are_bounded(classifier_bundle: Bundle) -> None:
    """Bodies that are being received count, too."""
    limits = cloud.Limits(max_held_bytes=len(ENCODED.body) + 100)
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], limits=limits) as url:
        with socket.create_connection(address(url), timeout=5) as slow:
            slow.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n".encode() + b" " * 800
            )
            wait_for(lambda: metrics(url)["sfumato_held_bytes"] == 800)
            status, _, headers = infer(url)
            assert (status, headers["Retry-After"]) == (503, "1")
        wait_for(lambda: metrics(url)["sfumato_held_bytes"] == 0)
        assert infer(url)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        f"POST {INFER} HTTP/1.1\r\nHost".encode(),
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nabc".encode(),
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\nabc".encode(),
    ],
)
def test_who_takes_too_long_is_cut_off(classifier_bundle: Bundle, sent: bytes) -> None:
    limits = cloud.Limits(receive_timeout_s=0.3)
    with (
        cloud.running([cloud.ServedModel(classifier_bundle.path)], limits=limits) as url,
        socket.create_connection(address(url), timeout=5) as slow,
    ):
        slow.sendall(sent)
        with suppress(ConnectionResetError):  # but no timeout of ours
            while slow.recv(1000):  # the 413, for the last of them
                pass
        assert infer(url)[0] == 200


@pytest.mark.parametrize("head", [b"X: " + b"a" * 1_000_000, b"".join(b"X%d: a\r\n" % i for i in range(200))])
def test_huge_heads_are_refused(classifier_bundle: Bundle, head: bytes) -> None:
    with (
        cloud.running([cloud.ServedModel(classifier_bundle.path)]) as url,
        socket.create_connection(address(url), timeout=5) as connection,
    ):
        try:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
            response = connection.recv(1000)
        except ConnectionError:
            response = b""  # it was cut off while it spoke
        assert b" 200 " not in response
        assert ask(url, "GET", "/v2/health/live")[0] == 200


def test_connections_are_bounded(classifier_bundle: Bundle) -> None:
    limits = cloud.Limits(max_connections=3)
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], limits=limits) as url:
        held = [socket.create_connection(address(url), timeout=5) for _ in range(3)]
        wait_for(lambda: turned_away(url))
        for connection in held:
            connection.close()
        wait_for(lambda: not turned_away(url))
        assert infer(url)[0] == 200


def turned_away(url: str) -> bool:
    with socket.create_connection(address(url), timeout=5) as connection:
        connection.settimeout(0.2)
        try:
            return connection.recv(1000).startswith(b"HTTP/1.1 503")
        except TimeoutError:
            return False


# --- reloads and goodbyes -------------------------------------------------------------------------


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`sfumato serve` in a process of its own."""
    command = [sys.executable, "-m", "sfumato", "serve", *map(str, arguments), "--port", "0", "--json"]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert started.stdout is not None
    try:
        line = started.stdout.readline()
        assert line, started.communicate()[1]
        yield json.loads(line)["url"], started
    finally:
        started.kill()
        started.communicate()


class Load:
    """Clients that ask without a pause, and leave when they are told to, as a load balancer's would."""

    def __init__(self, url: str, path: str, clients: int = 6) -> None:
        self.responses: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._url = url
        self._path = path
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(netloc(self._url), timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("POST", self._path, ENCODED.body, ENCODED.headers())
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return
            if response.status != 200:
                self.failures.append(f"status {response.status}")
            self.responses.append(json.loads(body))
            if response.headers.get("Connection") == "close":
                return


def test_reloading_under_load_drops_no_request(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "tiny" / "1").mkdir(parents=True)
    tiny.save_classifier(folder / "tiny" / "1" / "model.onnx")
    with process("--models", folder) as (url, server):
        with Load(url, INFER) as load:
            wait_for(lambda: len(load.responses) > 50)
            (folder / "tiny" / "2").mkdir()
            tiny.save_classifier(folder / "tiny" / "2" / "model.onnx")
            time.sleep(0.3)
            assert load.responses[-1]["model_version"] == "1", "only noticed when told so"
            server.send_signal(signal.SIGHUP)
            wait_for(lambda: load.responses[-1]["model_version"] == "2")
            (folder / "tiny" / "3").mkdir()
            (folder / "tiny" / "3" / "model.onnx").write_bytes(b"junk")
            shutil.rmtree(folder / "tiny" / "1")
            server.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            more = len(load.responses)
            wait_for(lambda: len(load.responses) > more + 50)
            assert load.responses[-1]["model_version"] == "2"
            assert infer(url, "/v2/models/tiny/versions/1/infer")[0] == 200, "nothing of it was changed"
        assert load.failures == []
        server.send_signal(signal.SIGTERM)
        log = server.communicate(timeout=20)[1]
        assert server.returncode == 0
    assert "serving tiny version 2, tiny version 1" in log
    assert "refused version 3 of tiny" in log


def test_goodbye_under_load_drops_no_request(classifier_bundle: Bundle) -> None:
    with process(classifier_bundle.path, "--linger", 1) as (url, server):
        with Load(url, INFER) as load:
            wait_for(lambda: len(load.responses) > 50)
            server.send_signal(signal.SIGTERM)
            wait_for(lambda: ask(url, "GET", "/v2/health/ready")[0] == 503)
            assert ask(url, "GET", "/v2/health/live")[0] == 200
            assert infer(url)[0] == 200, "it still responses"
            server.wait(20)
        assert load.failures == []
    assert server.returncode == 0


def test_a_request_under_way_is_answered_before_the_end(classifier_bundle: Bundle) -> None:
    with process(classifier_bundle.path, "--linger", 0) as (url, server):
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(ENCODED.body)}\r\n"
        head += "".join(f"{key}: {value}\r\n" for key, value in ENCODED.headers().items()) + "\r\n"
        with socket.create_connection(address(url), timeout=20) as connection:
            connection.sendall(head.encode() + ENCODED.body[:100])
            wait_for(lambda: metrics(url)["sfumato_held_bytes"] == 100)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            connection.sendall(ENCODED.body[100:])
            assert b" 200 " in connection.recv(10_000)
        assert server.wait(20) == 0


def wait_for(true: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def test_a_request_that_is_over_leaves_nothing_for_the_garbage_collector(
    tiny_bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body would stay in memory until then, and memory that is always new is slow."""
    obfuscator, classifier = tiny_bundles
    made: list[weakref.ref[Exchange]] = []

    class Watched(Exchange):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(weakref.ref(self))

    monkeypatch.setattr("sfumato.cloud.app.Exchange", Watched)
    gc.disable()
    try:
        with cloud.running([cloud.ServedModel(classifier.path)]) as url, Client(url, obfuscator) as client:
            for seed in range(6):
                client.classify(tiny.image(seed))
            assert len(made) >= 6 and sum(one() is not None for one in made) <= 1  # the connection has the last
            made.clear()
            asked = http.client.HTTPConnection(netloc(url), timeout=10)
            for _ in range(6):
                asked.request("POST", INFER, b'{"inputs": 1}')
                assert asked.getresponse().read().startswith(b'{"error": ')
            asked.close()
            assert len(made) == 6 and sum(one() is not None for one in made) <= 1
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [1, 3])
def test_an_inference_that_arrives_in_one_piece_needs_no_task(
    classifier_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A task, and what uvicorn does in it, costs a tiny model's server a tenth of its processor time."""
    model = cloud.ServedModel(classifier_bundle.path)
    run, names = model.batcher._run, []

    def watched(inputs: Any) -> Any:
        names.extend(task.get_coro().__name__ for task in asyncio.all_tasks())  # type: ignore[union-attr]
        return run(inputs)

    monkeypatch.setattr(model.batcher, "_run", watched)
    monkeypatch.setattr(model.batcher, "_inline", True)  # however slow the machine is
    with cloud.running([model]) as url, socket.create_connection(address(url), timeout=10) as connection:
        request = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n" % (
            INFER.encode(), len(ENCODED.body), "".join(f"{k}: {v}\r\n" for k, v in ENCODED.headers().items()).encode()
        )  # fmt: skip
        for _ in range(count):
            connection.sendall(request + ENCODED.body)
            response = connection.recv(2**20)
            assert response.startswith(b"HTTP/1.1 200 OK\r\ndate: ") and response.count(b"HTTP/1.1") == 1
    assert names and "run_asgi" not in names


def test_who_hangs_up_in_the_middle_of_a_request_is_noted(classifier_bundle: Bundle, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], audit_log=audit) as url:
        with socket.create_connection(address(url), timeout=10) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nabc".encode())
            wait_for(lambda: metrics(url)["sfumato_held_bytes"] == 3)
        wait_for(lambda: metrics(url)["sfumato_held_bytes"] == 0)
    noted = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(one["model"], one["status"]) for one in noted if one["status"] != 200] == [("tiny", 499)]


def test_what_takes_longer_than_the_grace_is_cut_off_and_noted(
    classifier_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, model, waits = tmp_path / "audit.jsonl", cloud.ServedModel(classifier_bundle.path), threading.Event()
    run = model.batcher._run
    monkeypatch.setattr(model.batcher, "_run", lambda inputs: (waits.set(), time.sleep(1.5), run(inputs))[2])
    monkeypatch.setattr(model.batcher, "_inline", False)
    limits = cloud.Limits(linger_s=0, grace_s=1)
    with ThreadPoolExecutor(1) as pool:
        with cloud.running([model], audit_log=audit, limits=limits) as url:
            asked = pool.submit(infer, url)
            assert waits.wait(10)
        assert asked.result()[0] == 500
    assert [json.loads(line)["status"] for line in audit.read_text().splitlines()] == [499]


def test_what_cannot_be_served_is_said_in_a_line(classifier_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "net" / "latest").mkdir(parents=True)
    bundle = classifier_bundle.path
    for arguments, told in (
        ([], "nothing to serve"),
        ([bundle, bundle], "two models are called 'tiny'"),
        ([bundle, bundle, "--name", "x"], "for one model"),
        (["--models", tmp_path / "empty"], "has no models"),
        (["--models", tmp_path / "odd"], "number"),
    ):
        done = sfumato("serve", *arguments, code=1)
        assert done.stderr.startswith("error: ") and told in done.stderr
        assert len(done.stderr.splitlines()) == 1
