"""A relay that records every byte sent to a server and back, to check the payload."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.parse
from collections.abc import Iterator


@contextlib.contextmanager
def relayed(url: str) -> Iterator[tuple[str, bytearray, bytearray]]:
    """Another address for a server, and the bytes that are sent to it there and come from it."""
    parts = urllib.parse.urlsplit(url)
    sent, received = bytearray(), bytearray()
    with socket.create_server(("127.0.0.1", 0)) as front:
        threading.Thread(
            target=_accept, args=(front, (parts.hostname, parts.port), sent, received), daemon=True
        ).start()
        yield f"{parts.scheme}://127.0.0.1:{front.getsockname()[1]}", sent, received


def _accept(front: socket.socket, behind: tuple[str, int], sent: bytearray, received: bytearray) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = front.accept()
            far = socket.create_connection(behind)
            for source, target, record in ((near, far, sent), (far, near, received)):
                threading.Thread(target=_pump, args=(source, target, record), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            record += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
