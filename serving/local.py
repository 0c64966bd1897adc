"""The application on the Ray cluster at hand, for as long as a `with` block lasts."""

import collections
import errno
import math
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from recipe_ray.errors import ServiceError
from serving.app import build_app, engine_placement
from serving.keys import check_exposure
from serving.settings import AppArgs

APP_NAME = "recipe"
_READY_TIMEOUT_S = 30.0  # from running replicas to the first answer through the proxy: well under a second


@contextmanager
def serving(args: AppArgs, *, host: str = "127.0.0.1", port: int = 8000, quiet: bool = False) -> Iterator[str]:
    """Start Serve with the application, yield its base URL once it answers, and tear all of Serve down at the end.

    The caller has connected to Ray. What `build_app`, the port and the cluster's room tell is wrong is found before
    Serve is started.

    Args:
        args: of the application.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        quiet: log warnings only, and no line for each request.

    Raises:
        ServiceError: the port is in use, the cluster is too small, Serve already runs in it, or the application does
            not start.
        RecipeError: what `build_app` finds wrong.
    """
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False) if quiet else None
    check_exposure(host, args.keys, open=args.open)
    port = bindable_port(host, port)
    application = build_app(args)
    _check_resources(args)
    if serve.status().proxies:
        raise ServiceError(
            "Serve already runs in this Ray cluster and would be shut down with this application; "
            "use `serve deploy serving/config.yaml` there"
        )
    try:
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=host, port=port),
                logging_config=logging_config,
            )
            serve.run(application, name=APP_NAME, logging_config=logging_config)
        except (RuntimeError, TimeoutError, RayError, RayServeException) as error:
            raise ServiceError(f"the application did not start: {_trouble() or _last_line(str(error))}") from error
        url = f"http://{_reachable(host)}:{port}"
        _wait_until_ready(url)
        yield url
    finally:
        serve.shutdown()


def bindable_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0.

    Raises:
        ServiceError: it is in use, not allowed, or the host is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            # As servers do: connections that have just closed do not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ServiceError(_port_trouble(host, port, error)) from error


def _check_resources(args: AppArgs) -> None:
    """Refuse what the cluster cannot hold: Serve would wait for it without end."""
    gpus = sum(engine_placement(model)[1] * model.num_engines for model in args.models)
    custom: collections.Counter[str] = collections.Counter()
    for model in args.models:
        custom.update(model.resources)
    there = ray.cluster_resources()
    for name, called, needed, remedy in (
        ("CPU", "CPUs", args.num_cpus, "lower cpus, num_engines, num_retrievers or num_index_shards"),
        ("GPU", "GPUs", gpus, "lower gpus or num_engines"),
        *(
            (name, f"of the resource {name!r}", needed, "add nodes that have it, or lower shard_resources")
            for name, needed in custom.items()
        ),
    ):
        if needed > there.get(name, 0):
            raise ServiceError(
                f"the application needs {needed:g} {called}, but the Ray cluster has {there.get(name, 0):g}; {remedy}"
            )
    num_nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    for model in args.models:
        per_node = model.shard_replicas_per_node or math.inf
        if model.num_index_shards and model.shard_replicas > num_nodes * per_node:
            raise ServiceError(
                f"shard_replicas is {model.shard_replicas} and shard_replicas_per_node {per_node:g}, but the Ray "
                f"cluster has {num_nodes} nodes with CPUs; add nodes, or lower shard_replicas"
            )


def _port_trouble(host: str, port: int, error: OSError) -> str:
    match error:
        case socket.gaierror():
            return f"host {host!r} is unknown; give an address of this machine, such as 127.0.0.1"
        case OSError(errno=errno.EADDRINUSE):
            return f"port {port} on {host} is in use; give another --port, or stop what listens there"
        case _:
            return f"cannot listen on port {port} of {host} ({error.strerror}); give another host or port"


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy leads out of this machine
    while True:
        try:
            with direct.open(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise ServiceError(f"{url} does not answer after {_READY_TIMEOUT_S:g} seconds ({error})") from error
        time.sleep(0.1)


def _trouble() -> str:
    application = serve.status().applications.get(APP_NAME)
    return why_not_started(
        {name: part.message for name, part in application.deployments.items()} if application else {}
    )


def why_not_started(messages: Mapping[str, str]) -> str:
    """Say in one line what Serve says of deployments: the last line of each message, where a traceback names its error.

    Args:
        messages: of Serve, by deployment, empty where all is well.
    """
    troubles = {name: _last_line(message) for name, message in messages.items() if message.strip()}
    return "; ".join(f"{name}: {trouble}" for name, trouble in troubles.items())


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^recipe_ray\.errors\.\w+: ", "", lines[-1]) if lines else "Serve gives no reason"
