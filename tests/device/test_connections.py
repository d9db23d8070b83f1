"""Client certificates, and an HTTP proxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from recording import leaked, recording
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client
from sfumato.errors import EndpointError, EndpointUnreachable
from tiny import LABELS, image

pytestmark = pytest.mark.usefixtures("both_clients")

IMAGE = image(11)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `NAME.pem` and `NAME.key` of the server, the client and a stranger, each signed by itself."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        try:
            subprocess.run(
                [*command, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
                check=True,
                capture_output=True,
            )
        except FileNotFoundError:
            pytest.skip("no openssl to make a certificate with")
    both = (folder / "client.pem").read_bytes() + (folder / "client.key").read_bytes()
    (folder / "both.pem").write_bytes(both)
    return folder


@contextlib.contextmanager
def proxying() -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP proxy: its address, and the first line of each request."""
    lines: list[bytes] = []
    front = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(near: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += near.recv(2**16)
        lines.append(asked.split(b"\r\n")[0])
        verb, where, _ = lines[-1].split(b" ")
        place = where.removeprefix(b"http://").split(b"/")[0].decode()
        host, _, port = place.rpartition(":")
        far = socket.create_connection((host, int(port)))
        if verb == b"CONNECT":
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            far.sendall(asked)
        threading.Thread(target=pump, args=(far, near), daemon=True).start()
        pump(near, far)

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(front.accept()[0],), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{front.getsockname()[1]}", lines
    finally:
        front.close()


@contextlib.contextmanager
def tls_server(certificates: Path, scheme: str) -> Iterator[str]:
    """A server that wants the client's certificate."""
    own, known = certificates / "server.pem", certificates / "client.pem"
    key = certificates / "server.key"
    if scheme == "grpcs":
        grpc = pytest.importorskip("grpc")
        import grpc_fake

        pair = [(key.read_bytes(), own.read_bytes())]
        with grpc_fake.serving(grpc.ssl_server_credentials(pair, known.read_bytes(), True)) as server:
            yield server.url.replace("grpc://", "grpcs://")
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(known))
    context.load_cert_chain(own, key)
    context.verify_mode = ssl.CERT_REQUIRED
    with recording() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server.url.replace("http://", "https://")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_server_that_wants_a_certificate_gets_it(scheme: str, certificates: Path, obfuscator_bundle: Bundle) -> None:
    pem = {name: certificates / name for name in ("client.pem", "client.key", "both.pem", "stranger.pem")}
    options = {"ca_file": certificates / "server.pem", "retries": 0, "timeout_s": 5.0}
    with tls_server(certificates, scheme) as url:
        for own in (
            {"cert_file": pem["client.pem"], "key_file": pem["client.key"]},
            {"cert_file": pem["both.pem"]},
        ):
            with Client(url, obfuscator_bundle, **options, **own) as it:
                assert it.classify(IMAGE).label in LABELS
        stranger = {"cert_file": pem["stranger.pem"], "key_file": certificates / "stranger.key"}
        for other in ({}, stranger):
            with Client(url, obfuscator_bundle, **options, **other) as it, pytest.raises(EndpointUnreachable):
                it.classify(IMAGE)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_files_that_cannot_be_used_are_told_at_once(
    scheme: str, certificates: Path, obfuscator_bundle: Bundle, tmp_path: Path
) -> None:
    if scheme == "grpcs":
        pytest.importorskip("grpc")
    client, key, junk = certificates / "client.pem", certificates / "client.key", tmp_path / "junk.pem"
    junk.write_text("junk")
    locked = tmp_path / "locked.key"
    lock = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", key, "-out", locked]
    subprocess.run(lock, check=True, capture_output=True)
    for options, message in (
        ({"ca_file": junk}, "no certificate authorities"),
        ({"cert_file": junk}, "cannot be used"),
        ({"cert_file": client}, "cannot be used"),
        ({"cert_file": client, "key_file": certificates / "stranger.key"}, "cannot be used"),
        ({"cert_file": client, "key_file": locked}, "not encrypted"),
        ({"cert_file": tmp_path / "nowhere.pem"}, "no file"),
        ({"key_file": key}, "needs its certificate"),
    ):
        with pytest.raises(EndpointError, match=message):
            Client(f"{scheme}://localhost:1", obfuscator_bundle, **options)
    with pytest.raises(EndpointError, match=f"needs TLS; use {scheme}"):
        Client(f"{scheme[:-1]}://localhost:1", obfuscator_bundle, cert_file=client, key_file=key)


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs"])
def test_everything_goes_through_the_proxy(scheme: str, certificates: Path, obfuscator_bundle: Bundle) -> None:
    options: dict[str, object] = {"retries": 0, "timeout_s": 5.0}
    with contextlib.ExitStack() as stack:
        if scheme.endswith("s"):
            url = stack.enter_context(tls_server(certificates, scheme))
            options |= {"ca_file": certificates / "server.pem", "cert_file": certificates / "both.pem"}
        elif scheme == "grpc":
            pytest.importorskip("grpc")
            import grpc_fake

            url = stack.enter_context(grpc_fake.serving()).url
        else:
            server = stack.enter_context(recording())
            url = server.url
        proxy, lines = stack.enter_context(proxying())
        with Client(url, obfuscator_bundle, proxy=proxy, **options) as it:  # type: ignore[arg-type]
            assert it.classify(IMAGE).label in LABELS
    assert lines and all(line.startswith(b"CONNECT " if scheme != "http" else b"") for line in lines)
    if scheme == "http":
        assert leaked(server.recorded, IMAGE) == set()


def test_a_proxy_that_cannot_be_used(obfuscator_bundle: Bundle) -> None:
    for proxy in ("proxy:3128", "https://proxy:3128", "socks5://proxy:1", "http://user:secret@proxy:1"):
        with pytest.raises(EndpointError) as caught:
            Client("http://localhost:1", obfuscator_bundle, proxy=proxy)
        assert "secret" not in str(caught.value)
    with pytest.raises(EndpointError, match="in the clear"):  # it leaves this machine
        Client("http://localhost:1", obfuscator_bundle, proxy="http://proxy:3128", token="token")
    Client("https://localhost:1", obfuscator_bundle, proxy="http://proxy:3128", token="token").close()


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_time_that_never_ends_or_begins_is_refused(timeout_s: float, obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError, match="timeout_s"):
        Client("http://localhost:1", obfuscator_bundle, timeout_s=timeout_s)
