"""The server on its edges' twins: what it answers, and what each value is said to be worth."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime

from freshet.flows.edges.http import Request, Response
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.edges.redis_reads import MemoryReads
from freshet.flows.server import FeatureServer, Terms
from freshet.flows.steps.serving import Catalog
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.event import Event, Stream, contract
from freshet.schemas.ledger import source_key
from freshet.schemas.online_layout import layouts
from freshet.schemas.progress import Progress
from freshet.schemas.record import partition_of
from freshet.schemas.serving import ReadRequest, ServedRow, Status
from freshet.schemas.view import Feature, View

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
SECOND_US = 1_000_000
PARTITIONS = 4
TOKEN = "s3cret"


class Edit(Event):
    stream = Stream(topic="edits", key="user", event_time="time", partitions=PARTITIONS)
    time: AwareDatetime
    user: str
    page: int


EDITS, _ = contract("edits", Edit)
assert EDITS is not None


def view(name: str, entity: dict[str, pa.DataType], ttl: timedelta = timedelta(0), **features: str) -> View:
    columns = tuple(pa.field(column, kind) for column, kind in entity.items())
    made = tuple(Feature(feature, DTYPES[dtype], "") for feature, dtype in features.items())
    return View(name, ("edits",), columns, made, ttl)


BY_USER = view("by_user", {"user": pa.string()}, edits="int64", share="float64")
FOR_A_DAY = view("for_a_day", {"user": pa.string()}, timedelta(days=1), edits="int64")
BY_PAGE = view("by_page", {"page": pa.int64()}, edits="int64")
BY_BOTH = view("by_both", {"user": pa.string(), "page": pa.int64()}, edits="int64")
VIEWS = (BY_USER, FOR_A_DAY, BY_PAGE, BY_BOTH)


class Counted:
    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.values: Counter[tuple[str, str]] = Counter()

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        assert seconds > 0
        self.requests[endpoint, status] += 1

    def served(self, view: str, statuses: Mapping[str, int]) -> None:
        self.values.update({(view, status): count for status, count in statuses.items()})


@dataclass
class Kept:
    """Keeps everything of which the key holds a word."""

    word: bytes
    rows: list[tuple[ServedRow, int]] = field(default_factory=list)

    def is_chosen(self, key: bytes) -> bool:
        return self.word in key

    def keep(self, rows: Sequence[ServedRow], served_at_us: int) -> None:
        self.rows += [(row, served_at_us) for row in rows]


class Rig:
    """A server on twins; its clock stands at noon until it is moved."""

    def __init__(self, terms: Terms | None = None, kept: Kept | None = None) -> None:
        self.now_us = NOON_US
        self.store = MemoryOnlineStore("shop", VIEWS, lambda: NOON)
        self.reads, self.log, self.counted = MemoryReads(self.store), MemoryLog(), Counted()
        self.log.create_topics({"edits": PARTITIONS})
        ticks = itertools.count()
        assert EDITS is not None
        self.server = FeatureServer(
            project="shop",
            catalog=Catalog(layouts("shop", VIEWS), {"edits": EDITS}, {"shop": ["by_user", "by_page"]}),
            contracts={"edits": EDITS},
            reads=self.reads,
            publisher=self.log.publisher(),
            counts=self.counted,
            terms=terms or Terms(2 * SECOND_US),
            now_us=lambda: self.now_us,
            clock_s=lambda: float(next(ticks)),
            served=kept,
        )
        self.all_is_online(NOON_US)

    def all_is_online(self, at_us: int, **through_us: int) -> None:
        """Let the materializer have said at an instant that all is online; of some partitions, up to earlier ones."""
        self.reads.progress = {
            source_key("edits", part): Progress(through_us.get(f"p{part}", at_us), at_us, SECOND_US)
            for part in range(PARTITIONS)
        }
        asyncio.run(self.server.look())

    def write(self, of: View, entity: tuple[Any, ...], at: datetime = NOON, **values: Any) -> None:
        columns = dict(zip(of.entity_names, entity, strict=True))
        stamps = {"event_timestamp": at, "created": at, "_version": 3, "_partition": 0, "_offset": 0}
        self.store.write(of, pa.Table.from_pylist([columns | stamps | values], schema=of.row_schema))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = {name.encode(): value.encode() for name, value in headers.items()}
        return asyncio.run(self.server.answer(Request(method, path, told, raw)))

    def read(self, features: Sequence[str], *, full: bool = False, **entities: Sequence[Any]) -> dict[str, Any]:
        body = {"features": list(features), "entities": entities, "full_feature_names": full}
        response = self.ask("POST", "/get-online-features", body)
        assert response.status == 200, response.body
        told = json.loads(response.body)
        return dict(zip(told["metadata"]["feature_names"], told["results"], strict=True))

    def refused(self, body: Any, path: str = "/get-online-features") -> tuple[int, str]:
        response = self.ask("POST", path, body)
        return response.status, json.loads(response.body)["detail"]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_values_are_answered_by_column_as_feast_does(rig: Rig) -> None:
    rig.write(BY_USER, ("ada",), edits=3, share=0.5)
    rig.write(BY_USER, ("bob",), NOON + timedelta(milliseconds=5), edits=-1, share=float("inf"))

    response = rig.ask(
        "POST",
        "/get-online-features",
        {"features": ["by_user:share", "by_user:edits"], "entities": {"user": ["bob", "ada"]}},
    )

    times = ["2026-01-01T12:00:00.005Z", "2026-01-01T12:00:00Z"]
    present, none = ["PRESENT", "PRESENT"], ["1970-01-01T00:00:00Z"] * 2
    assert response.status == 200
    assert json.loads(response.body) == {
        "metadata": {"feature_names": ["user", "share", "edits"]},
        "results": [
            {"values": ["bob", "ada"], "statuses": present, "event_timestamps": none},
            {"values": ["Infinity", 0.5], "statuses": present, "event_timestamps": times},
            {"values": [-1, 3], "statuses": present, "event_timestamps": times},
        ],
    }


def test_null_missing_and_outlived_values_are_told_apart(rig: Rig) -> None:
    day = timedelta(days=1)
    rig.write(BY_USER, ("ada",), edits=None, share=0.5)
    rig.write(FOR_A_DAY, ("ada",), edits=1)
    rig.write(FOR_A_DAY, ("bob",), NOON - day, edits=2)
    rig.write(FOR_A_DAY, ("eve",), NOON - day - timedelta(microseconds=1), edits=3)

    of_user = rig.read(["by_user:edits", "by_user:share"], user=["ada", "eve"])
    of_day = rig.read(["for_a_day:edits"], user=["ada", "bob", "eve", "kim"])

    assert of_user["edits"]["statuses"] == ["NULL_VALUE", "NOT_FOUND"]
    assert of_user["share"]["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert of_day["edits"]["statuses"] == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert of_day["edits"]["values"] == [1, 2, 3, None]


def test_what_waits_in_its_partition_makes_an_entity_stale_and_no_other(rig: Rig) -> None:
    users = [f"user{number}" for number in range(40)]
    for user in users:
        rig.write(BY_USER, (user,), NOON - timedelta(days=30), edits=1, share=0.0)
    rig.all_is_online(NOON_US, p2=NOON_US - 2 * SECOND_US - 1)

    found = rig.read(["by_user:edits"], user=users)["edits"]

    late = [partition_of(user.encode(), PARTITIONS) == 2 for user in users]
    assert found["statuses"] == ["OUTSIDE_MAX_AGE" if is_late else "PRESENT" for is_late in late]
    assert {*late} == {True, False}
    assert found["values"] == [1] * 40


def test_an_entity_that_is_not_the_streams_key_is_stale_if_any_partition_is(rig: Rig) -> None:
    rig.write(BY_PAGE, (7,), edits=1)
    rig.write(BY_BOTH, ("ada", 7), edits=1)
    asked = ["by_page:edits", "by_both:edits"]

    before = rig.read(asked, full=True, user=["ada"], page=[7])
    rig.all_is_online(NOON_US, p0=NOON_US - 3 * SECOND_US)
    after = rig.read(asked, full=True, user=["ada"], page=[7])

    names = ["by_page__edits", "by_both__edits"]
    assert [before[name]["statuses"] for name in names] == [["PRESENT"], ["PRESENT"]]
    assert [after[name]["statuses"] for name in names] == [["OUTSIDE_MAX_AGE"], ["OUTSIDE_MAX_AGE"]]


def test_nothing_is_called_fresh_once_nobody_says_so_any_more_and_an_idle_entity_is_while_somebody_does(
    rig: Rig,
) -> None:
    rig.write(BY_USER, ("ada",), NOON - timedelta(days=400), edits=1, share=0.0)

    def status() -> str:
        asyncio.run(rig.server.look())
        return str(rig.read(["by_user:edits"], user=["ada"])["edits"]["statuses"][0])

    assert status() == "PRESENT"
    rig.now_us += 5 * SECOND_US  # target, two epochs, one look
    assert status() == "PRESENT"
    rig.now_us += 1
    assert status() == "OUTSIDE_MAX_AGE"
    rig.all_is_online(rig.now_us)
    assert status() == "PRESENT"
    rig.now_us += 5 * SECOND_US  # since the last look
    assert rig.read(["by_user:edits"], user=["ada"])["edits"]["statuses"] == ["OUTSIDE_MAX_AGE"]
    rig.all_is_online(rig.now_us)
    assert status() == "PRESENT"
    rig.reads.progress = {}
    assert status() == "OUTSIDE_MAX_AGE"


def test_a_store_that_tells_no_progress_for_a_while_lets_what_was_known_grow_old(rig: Rig) -> None:
    rig.write(BY_USER, ("ada",), edits=1, share=0.0)
    rig.reads.outage = Unavailable("the store is away")
    rig.now_us += 60 * SECOND_US
    asyncio.run(rig.server.look())
    assert rig.server.trouble() == "the store is away"
    rig.reads.outage = None

    assert rig.read(["by_user:edits"], user=["ada"])["edits"]["statuses"] == ["OUTSIDE_MAX_AGE"]
    asyncio.run(rig.server.look())
    assert rig.server.trouble() == ""


def test_a_feature_service_and_full_names_are_understood(rig: Rig) -> None:
    rig.write(BY_USER, ("ada",), edits=3, share=0.5)
    body = {"feature_service": "shop", "entities": {"user": ["ada"], "page": [1]}, "full_feature_names": True}

    told = json.loads(rig.ask("POST", "/get-online-features", body).body)

    assert told["metadata"]["feature_names"] == [
        "user", "page", "by_user__edits", "by_user__share", "by_page__edits"
    ]  # fmt: skip


def test_no_entity_is_an_answer_without_values(rig: Rig) -> None:
    assert rig.read(["by_user:edits"], user=[])["edits"] == {"values": [], "statuses": [], "event_timestamps": []}


REFUSED: Mapping[str, tuple[Any, int, str]] = {
    "no json": (b"{", 422, 'request "body" cannot be read: Invalid JSON'),
    "no object": ([], 422, "cannot be read: Input should be an object"),
    "no entities": ({"features": ["by_user:edits"]}, 422, 'request "entities" cannot be read: Field required'),
    "nothing asked": ({"entities": {"user": ["ada"]}}, 422, "needs either features or a feature service"),
    "unknown feature": (
        {"features": ["by_user:edit"], "entities": {"user": ["ada"]}},
        404,
        'feature "by_user:edit" is unknown. Hint: did you mean by_user:edits?',
    ),
    "unknown service": ({"feature_service": "x", "entities": {"user": ["ada"]}}, 404, "there is shop"),
    "twice": (
        {"features": ["by_user:edits", "for_a_day:edits"], "entities": {"user": ["ada"]}},
        422,
        'feature "edits" is asked for twice',
    ),
    "missing key": (
        {"features": ["by_page:edits"], "entities": {"user": ["ada"]}},
        422,
        '"page" is needed and not given',
    ),
    "unknown key": (
        {"features": ["by_page:edits"], "entities": {"page": [1], "pages": [1]}},
        422,
        'entity "pages" is unknown. Hint: did you mean page?',
    ),
    "uneven": (
        {"features": ["by_both:edits"], "entities": {"user": ["ada"], "page": [1, 2]}},
        422,
        "needs as many values of each join key; got user: 1, page: 2",
    ),
    "wrong type": ({"features": ["by_page:edits"], "entities": {"page": ["1"]}}, 422, "is int64; got '1'"),
    "truth is no number": ({"features": ["by_page:edits"], "entities": {"page": [True]}}, 422, "is int64; got True"),
    "null": ({"features": ["by_page:edits"], "entities": {"page": [None]}}, 422, "is int64; got None"),
    "too large": (
        {"features": ["by_page:edits"], "entities": {"page": [2**63]}},
        422,
        "is int64; got 9223372036854775808",
    ),
    "too many": ({"features": ["by_page:edits"], "entities": {"page": [1] * 10_001}}, 422, "may ask for 10000 at once"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_cannot_be_answered_is_told_why(rig: Rig, what: str) -> None:
    body, status, said = REFUSED[what]

    found = rig.refused(body)

    assert found[0] == status
    assert said in found[1]


def test_paths_and_methods_that_are_none_are_said(rig: Rig) -> None:
    assert rig.ask("GET", "/x").status == 404
    assert rig.ask("GET", "/get-online-features").status == 405
    assert rig.ask("POST", "/healthz").status == 405
    assert rig.ask("POST", "/streams/clicks/events", {}).status == 404


def test_a_store_that_is_away_is_a_503_and_health_says_so(rig: Rig) -> None:
    rig.reads.outage = Unavailable("online store Redis at localhost:1 cannot be read: no")
    asked = {"features": ["by_user:edits"], "entities": {"user": ["ada"]}}

    response = rig.ask("POST", "/get-online-features", asked)

    assert (response.status, dict(response.headers)[b"retry-after"]) == (503, b"1")
    assert json.loads(response.body)["detail"] == "online store Redis at localhost:1 cannot be read: no"
    assert rig.ask("GET", "/healthz").status == rig.ask("GET", "/readyz").status == 503
    rig.reads.outage = None
    assert rig.ask("GET", "/healthz").status == rig.ask("GET", "/readyz").status == 200


def test_more_requests_than_agreed_are_turned_away_and_the_next_is_let_in() -> None:
    rig = Rig(Terms(2 * SECOND_US, concurrency=2))
    waits = asyncio.Event()

    async def hang() -> None:
        await waits.wait()

    rig.reads.ping = hang  # type: ignore[method-assign]  # what every question of the twin begins with
    asked = json.dumps({"features": ["by_user:edits"], "entities": {"user": ["ada"]}}).encode()
    request = Request("POST", "/get-online-features", {}, asked)

    async def crowd() -> list[int]:
        first = [asyncio.create_task(rig.server.answer(request)) for _ in range(2)]
        await asyncio.sleep(0)
        third = await rig.server.answer(request)
        waits.set()
        return [
            third.status,
            *[one.status for one in await asyncio.gather(*first)],
            (await rig.server.answer(request)).status,
        ]

    assert asyncio.run(crowd()) == [503, 200, 200, 200]


def test_who_has_no_token_learns_nothing_but_health() -> None:
    rig = Rig(Terms(2 * SECOND_US, token=TOKEN))

    assert rig.ask("GET", "/features").status == 401
    assert rig.ask("GET", "/features", authorization="Bearer no").status == 401
    assert rig.ask("GET", "/features", authorization=f"Bearer {TOKEN}").status == 200
    assert rig.ask("GET", "/healthz").status == 200


def edit(user: str = "ada") -> dict[str, Any]:
    return {"time": NOON.isoformat(), "user": user, "page": 1}


def test_events_are_published_to_the_partition_of_their_key_and_answered_with_their_places(rig: Rig) -> None:
    one = rig.ask("POST", "/streams/edits/events", edit())
    several = rig.ask("POST", "/streams/edits/events", [edit("bob"), edit("ada")])

    ada, bob = (partition_of(user, PARTITIONS) for user in (b"ada", b"bob"))
    assert (one.status, json.loads(one.body)) == (202, {"events": [{"partition": ada, "offset": 0}]})
    assert json.loads(several.body)["events"] == [
        {"partition": bob, "offset": int(ada == bob)},
        {"partition": ada, "offset": 1 + int(ada == bob)},
    ]


def test_of_events_one_of_which_breaks_the_contract_none_is_published(rig: Rig) -> None:
    status, said = rig.refused([edit(), {**edit(), "page": "1"}], "/streams/edits/events")

    assert (status, said) == (422, 'event "[1].page" breaks the contract of edits; got Input should be a valid integer')
    assert rig.log.reader("edits", partition_of(b"ada", PARTITIONS)).end_offset == 0


@pytest.mark.parametrize("body", [b"", b"no", [], [[]] * 3, [1], b'"x"', [edit()] * 1001])
def test_what_is_no_event_is_refused(rig: Rig, body: Any) -> None:
    assert rig.refused(body, "/streams/edits/events")[0] == 422


def test_a_kafka_that_is_away_is_a_503(rig: Rig) -> None:
    rig.log.well = False

    assert rig.refused(edit(), "/streams/edits/events") == (503, 'kafka "memory" is not available: it is not well')


def test_requests_and_values_are_counted_by_what_became_of_them(rig: Rig) -> None:
    rig.write(BY_USER, ("ada",), edits=None, share=0.5)
    rig.read(["by_user:edits", "by_user:share"], user=["ada", "bob"])
    rig.refused(b"{")
    rig.ask("GET", "/features")
    rig.ask("POST", "/streams/edits/events", edit())

    assert rig.counted.values == {
        ("by_user", Status.NULL_VALUE): 1,
        ("by_user", Status.PRESENT): 1,
        ("by_user", Status.NOT_FOUND): 2,
    }
    read, features, events = ("get-online-features", 200), ("features", 200), ("events", 202)
    assert rig.counted.requests == {read: 1, ("get-online-features", 422): 1, features: 1, events: 1}


def test_what_was_served_is_kept_for_the_entities_of_the_sample_with_its_version() -> None:
    kept = Kept(b"ada")
    rig = Rig(kept=kept)
    rig.write(BY_USER, ("ada",), edits=7, share=0.5)
    rig.write(BY_USER, ("bob",), edits=8, share=0.5)

    rig.read(["by_user:edits", "for_a_day:edits"], full=True, user=["bob", "ada"])

    assert kept.rows == [
        (ServedRow("by_user", ("ada",), NOON_US, 3, Status.PRESENT, {"edits": 7}), NOON_US),
        (ServedRow("for_a_day", ("ada",), None, 0, Status.NOT_FOUND, {"edits": None}), NOON_US),
    ]


def test_what_can_be_asked_is_listed(rig: Rig) -> None:
    told = json.loads(rig.ask("GET", "/features").body)

    (day,) = (one for one in told["feature_views"] if one["name"] == "for_a_day")
    (feature,) = day["features"]
    assert (day["join_keys"], day["ttl"]) == ({"user": "string"}, "1d")
    assert (feature["reference"], feature["dtype"]) == ("for_a_day:edits", "int64")
    assert told["feature_services"] == [{"name": "shop", "feature_views": ["by_user", "by_page"]}]
    assert told["streams"] == [{"name": "edits", "events": "/streams/edits/events"}]


def test_the_openapi_document_names_every_path_and_the_events_schema(rig: Rig) -> None:
    told = json.loads(rig.ask("GET", "/openapi.json").body)

    assert sorted(told["paths"]) == [
        "/features", "/get-online-features", "/healthz", "/readyz", "/streams/edits/events"
    ]  # fmt: skip
    assert sorted(told["components"]["schemas"]["edits"]["required"]) == ["page", "time", "user"]


@given(st.binary(max_size=200))
def test_no_bytes_whatever_are_an_error_of_the_servers(body: bytes) -> None:
    rig = Rig()

    assert rig.ask("POST", "/get-online-features", body).status in {200, 404, 422}
    assert rig.ask("POST", "/streams/edits/events", body).status in {202, 422}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"features": _JSON, "entities": _JSON | st.dictionaries(st.sampled_from(["user", "page"]), _JSON)}
    )
)
def test_no_json_whatever_is_an_error_of_the_servers(body: Any) -> None:
    assert Rig().ask("POST", "/get-online-features", body).status in {200, 404, 422}


def test_so_many_values_may_be_asked_for_at_once_and_not_one_more() -> None:
    views = [view(f"v{number}", {"page": pa.int64()}, edits="int64") for number in range(40)]
    assert EDITS is not None
    catalog = Catalog(layouts("shop", views), {"edits": EDITS}, {})
    asked = {"features": [f"{one.name}:edits" for one in views], "full_feature_names": True}
    selection = catalog.select(ReadRequest(**asked, entities={"page": []}))

    selection.check({"page": [1] * 2_500})
    with pytest.raises(Refused, match=r"may ask for 2500 at once, of so many features; got 2501 entities"):
        selection.check({"page": [1] * 2_501})
