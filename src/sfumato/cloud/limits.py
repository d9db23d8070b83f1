"""The limits of a server."""

from __future__ import annotations

from dataclasses import dataclass

PIECE_BYTES = 64 * 2**10
"""Responses are sent in pieces of this size: so much of one is in memory for a client that does not take it."""


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_body_bytes: the longest request body that is read.
        max_held_bytes: how many bytes of bodies may be in memory at once, being received or waiting for a model.
        max_connections: how many connections there may be at once; the limit of open files may allow fewer. Beyond
            it, the connection that has been idle longest makes room, then the one that has waited longest for its
            client; if there is none, the new one gets a 503.
        idle_timeout_s: how long a connection may be silent between requests, and before the first.
        head_timeout_s: how long a request's head, and a TLS handshake, may take to arrive.
        receive_timeout_s: how long a whole request may take to arrive; the two above are never longer.
        send_timeout_s: how long a client may take for each 64 KiB of a response, and for the rest of it.
        max_rate: images per second of each token, or of all clients together without tokens; infinity for no limit.
        linger_s: how long after SIGTERM the server reports "not ready" and still serves, before it takes no
            further connections. SIGINT, and a second SIGTERM, end that.
        grace_s: how long requests in progress may take then.
    """

    max_body_bytes: int = 16 * 2**20
    max_held_bytes: int = 256 * 2**20
    max_connections: int = 1000
    idle_timeout_s: float = 5.0
    head_timeout_s: float = 10.0
    receive_timeout_s: float = 60.0
    send_timeout_s: float = 60.0
    max_rate: float = float("inf")
    linger_s: float = 1.0
    grace_s: float = 10.0
