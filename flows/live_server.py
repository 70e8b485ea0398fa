"""The server as it runs: one worker of it, on Redis, Kafka and a socket."""

import asyncio
import ipaddress
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from freshet.flows import settings as settings_
from freshet.flows.edges import http
from freshet.flows.edges.collector import undisturbed
from freshet.flows.edges.metrics import Server, ServerMetrics
from freshet.flows.edges.publisher import Publisher
from freshet.flows.edges.redis_reads import RedisReads
from freshet.flows.edges.served import ServedLog
from freshet.flows.following import Following
from freshet.flows.server import FeatureServer, Terms
from freshet.flows.steps.serving import Catalog
from freshet.flows.workspace import Workspace
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


@dataclass(frozen=True)
class _Begun:
    """A server, and what it is made of."""

    server: FeatureServer
    workspace: Workspace


class Serving:
    """What a worker answers by: the server of the declaration in force, and what servers that follow one another share.

    One follows another between two requests: those in work are answered by the one that began them, and connections
    stay open. Raises `Refused` for a declaration that cannot be served.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.metrics = ServerMetrics(*_counted(workspace))
        self._publisher, self._in_work = Publisher(workspace.kafka), Counter[str]()
        self._now: _Begun | None = None
        try:
            self._now = self._begin(workspace)
        except BaseException:  # whatever it is, the producer's thread must not outlive it
            self._publisher.close()
            raise
        self._following = Following(workspace, self._begin)

    @property
    def server(self) -> FeatureServer:
        """The server that answers what is asked now."""
        assert self._now is not None, "nothing is served yet"
        return self._now.server

    async def answer(self, request: http.Request) -> http.Response:
        """Answer one request."""
        return await self.server.answer(request)

    async def look(self) -> None:
        """Look how far the online store is."""
        await self.server.look()

    def trouble(self) -> str:
        """Return what was wrong with the online store at the last look, or nothing."""
        return self.server.trouble()

    async def follow(self) -> None:
        """Go on by the declaration in force, if it is another one by now."""
        begun = await asyncio.to_thread(self._following.look)  # to compile it takes seconds
        if begun is None:
            return
        await begun.server.look()
        self.metrics.follow(*_counted(begun.workspace))
        before, self._now = self.server, begun
        LOG.info("serving declaration %s from now on", begun.workspace.declared.id)
        await before.reads.answered()
        if before.reads is not begun.server.reads:
            await before.reads.close()
        if before.served is not None:
            await asyncio.to_thread(before.served.close)

    async def end(self) -> None:
        """Let go of the online store."""
        await self.server.reads.close()

    def close(self) -> None:
        """Let what waits be confirmed, and written."""
        self._publisher.close()
        if self.server.served is not None:
            self.server.served.close()

    def _begin(self, workspace: Workspace) -> _Begun:
        """Make the server of a declaration, which nobody asks yet."""
        settings, pipeline = workspace.settings, workspace.pipeline
        if workspace.online_url.startswith("sqlite:"):
            hint = "declare a redis:// store, or serve with `feast serve`"
            raise Refused([Problem("key", "onlineStore", "cannot be served from", "sqlite", hint)])
        target = workspace.source.declaration.servingRequirements
        if self._now is not None and self._now.workspace.online_url == workspace.online_url:
            reads = self._now.server.reads
        else:
            reads = RedisReads(workspace.online_url, pipeline.project, settings.server_deadline.total_seconds())
        served = None
        if settings.served_share:
            served = ServedLog(workspace.offline_root, pipeline.views, settings.served_share)
        services = {pipeline.project: [view.name for view in pipeline.views]}
        server = FeatureServer(
            project=pipeline.project,
            catalog=Catalog(layouts(pipeline.project, pipeline.views), workspace.contracts, services),
            contracts=workspace.contracts,
            reads=reads,
            publisher=self._publisher,
            counts=self.metrics,
            terms=Terms(count_us(target.freshnessTarget.bound), settings.server_token, settings.server_concurrency),
            now_us=lambda: time.time_ns() // 1000,
            clock_s=time.perf_counter,
            served=served,
            in_work=self._in_work,
        )
        return _Begun(server, workspace)


def _counted(workspace: Workspace) -> tuple[list[str], timedelta]:
    """Return what metrics are by: views, and the declared latency."""
    latency = workspace.source.declaration.servingRequirements.onlineLatency
    return [view.name for view in workspace.pipeline.views], latency.bound


@dataclass
class Worker:
    """One process that answers at a socket, which others may share with it."""

    workspace: Workspace
    number: int = 0

    def run(self, bound: socket.socket) -> None:
        """Answer until SIGTERM or SIGINT. Raises `Refused` and `Unavailable`."""
        workspace, settings = self.workspace, self.workspace.settings
        serving = Serving(workspace)
        address = settings.metrics_address or settings_.SERVER_METRICS_ADDRESS
        watched = Server(settings_.place_of(address, self.number), serving.metrics.registry, serving.trouble)
        host, port = bound.getsockname()[:2]
        project = workspace.pipeline.project
        watching = list[asyncio.Task[None]]()

        async def begin() -> http.Handler:
            await serving.look()
            LOG.info("serving %s at %s:%d; metrics at http://%s/metrics", project, host, port, watched.address)
            watching.extend(asyncio.create_task(_each_second(act)) for act in (serving.look, serving.follow))
            return serving.answer

        async def end() -> None:
            for task in watching:
                task.cancel()
            await serving.end()

        security = http.Security(settings.server_certificate, settings.server_key, settings.server_client_ca)
        try:
            with undisturbed():
                http.serve(begin, bound, security, end)
        finally:
            watched.close()
            serving.close()
        LOG.info("stopped")


async def _each_second(act: Callable[[], Awaitable[None]]) -> None:
    """Do something once a second."""
    while True:
        await asyncio.sleep(_LOOK_S)
        await act()
