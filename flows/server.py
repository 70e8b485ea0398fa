"""The server: HTTP requests in, values from the online store out, and events into Kafka. It knows neither by itself."""

import hmac
import json
import logging
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from freshet.flows.edges.http import Request, Response
from freshet.flows.steps.openapi import document, listing
from freshet.flows.steps.serving import Behind, Catalog, Unknown
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import Contract
from freshet.schemas.feast_bytes import NoValue
from freshet.schemas.progress import Progress
from freshet.schemas.serving import EVENTS_MAX, NAME_MAX, TOLD_MAX, Question, ReadRequest, ServedRow, Status

LOG = logging.getLogger("freshet")

READ, FEATURES, EVENTS = "get-online-features", "features", "events"
ENDPOINTS = (READ, FEATURES, EVENTS)
"""What requests are counted by."""
_RETRY = ((b"retry-after", b"1"),)
_STREAMS = "/streams/"
_EXPLAINED = 1000
_LOOK_US_MAX = 5_000_000
"""What was read of the store's progress holds no longer: nothing is called fresh by it."""
_NOTHING_KNOWN = Behind()


class Reads(Protocol):
    """The online store, as `edges.redis_reads` does."""

    async def read(self, questions: Sequence[Question]) -> list[list[list[bytes | None]]]:
        """Return, for each question, the fields of each of its hashes."""

    async def read_progress(self) -> dict[str, Progress]:
        """Return how far the store is, by source key."""

    async def ping(self) -> None:
        """Make sure that it answers."""

    async def answered(self) -> None:
        """Return once all who asked before have been answered."""

    async def close(self) -> None:
        """Let go of the connection."""


class Publishes(Protocol):
    """Kafka, as `edges.publisher` does."""

    async def publish(self, contract: Contract, events: Sequence[bytes]) -> list[tuple[int, int]]:
        """Publish events; return where each is."""


class Counts(Protocol):
    """Metrics, as `edges.metrics.ServerMetrics` does."""

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request."""

    def served(self, view: str, counts: Mapping[Status, int]) -> None:
        """Count values, by status."""


class Keeps(Protocol):
    """Where what was served is kept, as `edges.served` does."""

    def is_chosen(self, key: bytes) -> bool:
        """Say whether an entity is one of the sample."""

    def keep(self, rows: Sequence[ServedRow], served_at_us: int) -> None:
        """Keep rows."""

    def close(self) -> None:
        """Write what there is."""


@dataclass(frozen=True)
class Terms:
    """Under which terms the server answers: whom, how many of each endpoint at once, and what is fresh to it."""

    target_us: int
    token: str | None = None
    concurrency: int = 256


@dataclass
class FeatureServer:
    """Answers every request; nothing that is asked raises."""

    project: str
    catalog: Catalog
    contracts: Mapping[str, Contract]
    reads: Reads
    publisher: Publishes
    counts: Counts
    terms: Terms
    now_us: Callable[[], int]
    clock_s: Callable[[], float]
    served: Keeps | None = None
    in_work: Tally[str] = field(default_factory=Tally)
    """How many requests each endpoint has in work; servers that follow one another share it."""
    _progress: Mapping[str, Progress] | None = None
    _behind: Behind = field(default_factory=Behind)
    _looked_us: int = 0
    _trouble: str = ""

    def __post_init__(self) -> None:
        """Make what never changes."""
        views = [layout.view for layout in self.catalog.layouts.values()]
        self._listing = to_json(listing(views, self.catalog.services, self.contracts))
        self._document = to_json(document(self.project, views, self.contracts, needs_token=bool(self.terms.token)))

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        match request.path:
            case "/healthz" | "/health":
                return await self._if_get(request, self._healthz)
            case "/readyz":
                return await self._if_get(request, self._readyz)
        if (refused := self._not_let_in(request)) is not None:
            return refused
        begun_s, endpoint = self.clock_s(), _endpoint(request.path)
        if self.in_work[endpoint] >= self.terms.concurrency:
            response = _problem(503, "the server has too much to do", _RETRY)
        else:
            self.in_work[endpoint] += 1
            try:
                response = await self._routed(request)
            except Unknown as error:
                response = _refusal(404, error)
            except Refused as error:
                response = _refusal(422, error)
            except Unavailable as error:
                response = _problem(503, str(error), _RETRY)
            finally:
                self.in_work[endpoint] -= 1
        if endpoint:
            self.counts.request(endpoint, response.status, self.clock_s() - begun_s)
        return response

    async def look(self) -> None:
        """Read how far the store is; if it does not answer, what was known grows old."""
        try:
            self._progress = await self.reads.read_progress()
            self._trouble = ""
        except Unavailable as error:
            self._trouble = str(error)
            LOG.warning("how far the online store is cannot be read: %s", error)
        self._looked_us = self.now_us()
        self._behind = Behind.of(self._progress or {}, self.terms.target_us, self._looked_us)

    def trouble(self) -> str:
        """Return what was wrong with the online store at the last look, or nothing."""
        return self._trouble

    async def _routed(self, request: Request) -> Response:
        path = request.path
        if path == f"/{READ}":
            return await self._if_post(request, self._read)
        if path == f"/{FEATURES}":
            return await self._if_get(request, self._listed)
        if path == "/openapi.json":
            return await self._if_get(request, self._documented)
        stream = path.removeprefix(_STREAMS).removesuffix("/events")
        if path == f"{_STREAMS}{stream}/events":
            if stream not in self.contracts:
                return _problem(404, f'stream "{stream[:100]}" is unknown')
            return await self._if_post(request, lambda asked: self._publish(stream, asked))
        return _problem(404, "there is POST /get-online-features, GET /features, POST /streams/{stream}/events")

    async def _read(self, request: Request) -> Response:
        try:
            asked = ReadRequest.model_validate_json(request.body)
        except ValidationError as error:
            return _invalid(error)
        selection = self.catalog.select(asked)
        entities = asked.entities
        selection.check(entities)
        read = await self.reads.read(selection.questions(entities))
        now_us = self.now_us()
        behind = self._behind if now_us - self._looked_us < _LOOK_US_MAX else _NOTHING_KNOWN
        try:
            answer = selection.answer(entities, read, behind, now_us)
        except NoValue as error:
            hint = "`freshet repair` writes rows again; look who else writes there"
            raise Unavailable(f"the online store has what cannot be read: {error}. Hint: {hint}") from error
        for view, counts in answer.counts.items():
            self.counts.served(view, counts)
        if self.served is not None:
            self.served.keep(selection.rows(entities, read, behind, now_us, self.served.is_chosen), now_us)
        return Response(200, answer.body)

    async def _publish(self, stream: str, request: Request) -> Response:
        try:
            told = from_json(request.body)
        except ValueError as error:
            return _problem(422, f"the body is no JSON: {error}")
        events = (
            [to_json(event, inf_nan_mode="constants") for event in told] if isinstance(told, list) else [request.body]
        )
        if not 0 < len(events) <= EVENTS_MAX:
            return _problem(422, f"send 1 to {EVENTS_MAX} events at once, not {len(events)}")
        places = await self.publisher.publish(self.contracts[stream], events)
        found = [{"partition": partition, "offset": offset} for partition, offset in places]
        return Response(202, to_json({"events": found}))

    async def _listed(self, _: Request) -> Response:
        return Response(200, self._listing)

    async def _documented(self, _: Request) -> Response:
        return Response(200, self._document)

    async def _healthz(self, _: Request) -> Response:
        try:
            await self.reads.ping()
        except Unavailable as error:
            return Response(503, f"{error}\n".encode(), b"text/plain")
        return Response(200, b"ok\n", b"text/plain")

    async def _readyz(self, request: Request) -> Response:
        if self._progress is None:
            return Response(503, b"how far the online store is was not read yet\n", b"text/plain")
        return await self._healthz(request)

    def _not_let_in(self, request: Request) -> Response | None:
        if self.terms.token is None:
            return None
        given = request.headers.get(b"authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + self.terms.token.encode()):
            return None
        return _problem(401, "a bearer token is needed", ((b"www-authenticate", b"Bearer"),))

    async def _if_get(self, request: Request, act: Callable[[Request], Awaitable[Response]]) -> Response:
        return await act(request) if request.method == "GET" else _wrong_method(b"GET")

    async def _if_post(self, request: Request, act: Callable[[Request], Awaitable[Response]]) -> Response:
        return await act(request) if request.method == "POST" else _wrong_method(b"POST")


def _endpoint(path: str) -> str:
    """Return what a request is counted by, and has its places by: one of `ENDPOINTS`, or nothing."""
    if path.startswith(_STREAMS) and path.endswith("/events"):
        return EVENTS
    return path[1:] if path[1:] in ENDPOINTS[:2] else ""


def _problem(status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    return Response(status, json.dumps({"detail": detail}, ensure_ascii=False).encode(), headers=headers)


def _refusal(status: int, error: Refused) -> Response:
    return _problem(status, "; ".join(str(problem) for problem in error.problems[:TOLD_MAX]))


def _invalid(error: ValidationError) -> Response:
    if (count := error.error_count()) > _EXPLAINED:  # to list them would take seconds
        return _problem(422, f"the request cannot be read in {count} places")
    found = (
        Problem("request", ".".join(map(str, one["loc"]))[:NAME_MAX] or "body", f"cannot be read: {one['msg']}")
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:TOLD_MAX]
    )
    return _problem(422, "; ".join(map(str, found)))


def _wrong_method(allowed: bytes) -> Response:
    return _problem(405, f"the method is {allowed.decode()}", ((b"allow", allowed),))
