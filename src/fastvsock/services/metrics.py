"""A service's counts for Prometheus, by its own client library: the extra `fastvsock[metrics]`.

The counts are read for each request, so a service without requests pays nothing.
"""

import socket
from collections.abc import Iterator

from .. import errors
from ..host.addresses import Address
from ..stdio import log
from .acceptor import Service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Collector:
    """Gives prometheus_client the metrics of `service`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> "Iterator[Metric]":
        """The metrics as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        service = self._service
        yield GaugeMetricFamily("fastvsock_connections_open", "Connections open now", len(service.open))
        yield GaugeMetricFamily("fastvsock_connections_limit", "Connections at a time, at most", service.limit)
        yield CounterMetricFamily("fastvsock_connections", "Connections taken", service.taken)
        yield CounterMetricFamily("fastvsock_connections_failed", "Connections that ended in a failure", service.failed)
        yield CounterMetricFamily("fastvsock_connections_refused", "Connections rejected", service.rejected)
        unidentified = "Connections rejected because their owner could not be determined"
        yield CounterMetricFamily("fastvsock_connections_unidentified", unidentified, service.unidentified)
        moved = CounterMetricFamily("fastvsock_bytes", "Bytes moved: up from host to guest", labels=["direction"])
        for direction, count in zip(("up", "down"), service.moved, strict=True):
            moved.add_metric([direction], count)
        yield moved


def serve_metrics(address: Address, service: Service) -> None:
    """Serve the metrics of `service` on http://`address`/metrics, in a thread. Raises `FastvsockError`."""
    if address.path:
        raise errors.UsageError(f"invalid --metrics {str(address)!r}: expected 127.0.0.1:PORT or [::1]:PORT")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise errors.FastvsockError(
            "--metrics needs the Prometheus client library, which is not installed: pip install 'fastvsock[metrics]'"
        ) from None
    registry = CollectorRegistry()
    registry.register(Collector(service))
    try:
        server, _ = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise errors.FastvsockError(f"cannot serve metrics on {address}: {error.strerror or error}") from None
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    log(f"metrics on http://{Address(address.host, server.server_port)}/metrics")
