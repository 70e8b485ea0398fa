"""The server as it runs: one worker of it, on Redis, Kafka and a socket."""

import asyncio
import ipaddress
import logging
import socket
import time
from dataclasses import dataclass

from freshet.flows import settings as settings_
from freshet.flows.edges import http
from freshet.flows.edges.collector import undisturbed
from freshet.flows.edges.metrics import Server, ServerMetrics
from freshet.flows.edges.publisher import Publisher
from freshet.flows.edges.redis_reads import RedisReads
from freshet.flows.edges.served import ServedLog
from freshet.flows.live import Workspace
from freshet.flows.server import FeatureServer, Terms
from freshet.flows.steps.serving import Catalog
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.online_layout import layouts
from freshet.schemas.units import count_us

LOG = logging.getLogger("freshet")

_LOOK_S = 1.0


def listen(workspace: Workspace) -> socket.socket:
    """Take the server's address. Raises `Refused` for one that is taken, or that others reach and no token guards."""
    settings = workspace.settings
    address = settings.server_address or settings_.SERVER_ADDRESS
    guarded = settings.server_token is not None or settings.server_client_ca is not None
    if not (guarded or is_loopback(address.rpartition(":")[0])):
        fact, hint = (
            "is reached by others and guarded by nothing",
            "set FRESHET_SERVER_TOKEN or FRESHET_SERVER_CLIENT_CA",
        )
        raise Refused([Problem("address", address, fact, hint=hint)])
    return http.bind(address)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "[::1]", "", "0.0.0.0", "example.org")]
    [True, True, True, True, False, False]
    """
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass
class Worker:
    """One process that answers at a socket, which others may share with it."""

    workspace: Workspace
    number: int = 0

    def run(self, bound: socket.socket) -> None:
        """Answer until SIGTERM or SIGINT. Raises `Refused` and `Unavailable`."""
        workspace, settings = self.workspace, self.workspace.settings
        pipeline = workspace.pipeline
        if workspace.online_url.startswith("sqlite:"):
            hint = "declare a redis:// store, or serve with `feast serve`"
            raise Refused([Problem("key", "onlineStore", "cannot be served from", "sqlite", hint)])
        target = workspace.source.declaration.servingRequirements
        metrics = ServerMetrics([view.name for view in pipeline.views], target.onlineLatency.bound)
        served = None
        if settings.served_share:
            served = ServedLog(workspace.offline_root, pipeline.views, settings.served_share)
        reads = RedisReads(workspace.online_url, pipeline.project, settings.server_deadline.total_seconds())
        publisher = Publisher(workspace.kafka)
        services = {pipeline.project: [view.name for view in pipeline.views]}
        server = FeatureServer(
            project=pipeline.project,
            catalog=Catalog(layouts(pipeline.project, pipeline.views), workspace.contracts, services),
            contracts=workspace.contracts,
            reads=reads,
            publisher=publisher,
            counts=metrics,
            terms=Terms(count_us(target.freshnessTarget.bound), settings.server_token, settings.server_concurrency),
            now_us=lambda: time.time_ns() // 1000,
            clock_s=time.perf_counter,
            served=served,
        )
        address = settings.metrics_address or settings_.SERVER_METRICS_ADDRESS
        watched = Server(settings_.place_of(address, self.number), metrics.registry, server.trouble)
        host, port = bound.getsockname()[:2]
        LOG.info("serving %s at %s:%d; metrics at http://%s/metrics", pipeline.project, host, port, watched.address)

        watching = list[asyncio.Task[None]]()

        async def begin() -> http.Handler:
            await server.look()
            watching.append(asyncio.create_task(_watch(server)))
            return server.answer

        async def end() -> None:
            for task in watching:
                task.cancel()
            await reads.close()

        security = http.Security(settings.server_certificate, settings.server_key, settings.server_client_ca)
        try:
            with undisturbed():
                http.serve(begin, bound, security, end)
        finally:
            watched.close()
            publisher.close()
            if served is not None:
                served.close()
        LOG.info("stopped")


async def _watch(server: FeatureServer) -> None:
    """Look once a second how far the online store is."""
    while True:
        await asyncio.sleep(_LOOK_S)
        await server.look()
