"""Values and shape are Feast's, by its SDK, its own server and its `remote` store; statuses are ours where Feast's are not true."""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import uvicorn
from feast import FeatureStore, RepoConfig
from feast.feature_server import get_app
from feast.permissions.client.http_auth_requests_wrapper import HttpSessionManager
from secured import certificate
from servers import READ, TODAY, Client, opened, say_fresh, serving, view_of
from stack import Stack, prepared, until

from freshet.flows.edges.broker import Broker
from freshet.flows.edges.valkey import Valkey
from freshet.schemas.dtypes import DTYPES, Dtype
from freshet.schemas.view import View

EXPRESSIONS = {
    "bytes": "encode(page)", "string": "page", "int32": "(added % 100)::INTEGER", "int64": "added", "float32": "added::FLOAT",
    "float64": "added::DOUBLE", "bool": "isRobot", "unix_timestamp": "event_timestamp",
}  # fmt: skip
BY_USER, BY_BOTH, BY_PLACE = "wiki_edits_by_user", "wiki_edits_by_user_metrocode", "wiki_edits_by_metrocode"


def name_of(dtype: Dtype) -> str:
    return f"a_{dtype.name}" if dtype.element is None else f"some_{dtype.element.name}"


def with_every_type(declared: str) -> str:
    """Add a feature of each type to the editor's, and views of whole numbers and of two join keys."""
    lines = [
        (name_of(dtype), dtype.name, EXPRESSIONS[dtype.name] if dtype.element is None else f"[{EXPRESSIONS[dtype.element.name]}]")
        for dtype in DTYPES.values()
    ]  # fmt: skip
    frame = "ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW"
    for name, keys in (("both", "user, metroCode"), ("place", "metroCode")):
        lines += [
            (f"{name}_edits", "int64", f"count(*) OVER (PARTITION BY {keys} {frame})"),
            (f"{name}_mean", "float64", f"avg(delta) OVER (PARTITION BY {keys} {frame})"),
        ]
    made = ({"name": name, "dtype": kind, "source": "wiki_edits", "transformation": sql} for name, kind, sql in lines)
    flow = "\n".join(f"  - {json.dumps(one)}" for one in made)
    return declared.replace("servingRequirements:", f"{flow}\n\nservingRequirements:")


OLD = TODAY - timedelta(days=30)
"""Longer ago than the view's ttl."""
BEFORE_1970 = datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)
KINDS = {name_of(dtype): dtype for dtype in DTYPES.values()}


def of_each(**single: Any) -> dict[str, Any]:
    """Values of all types: single ones as given, and lists of that and of nothing else."""
    return {f"a_{kind}": value for kind, value in single.items()} | {f"some_{k}": [v] for k, v in single.items()}


ROWS: Mapping[str, tuple[datetime, Mapping[str, Any]]] = {
    "ada": (TODAY, of_each(bytes=b"\0\xff", string="é", int32=7, int64=300, float32=0.5, float64=0.1, bool=True, unix_timestamp=TODAY)),
    "least": (TODAY, of_each(bytes=b"\0" * 200, string="", int32=-(2**31), int64=-(2**63), float32=-3e38, float64=5e-324, bool=False, unix_timestamp=BEFORE_1970)),
    "greatest": (TODAY, of_each(bytes=b"\xff" * 20_000, string="x" * 20_000, int32=2**31 - 1, int64=2**63 - 1, float32=3e38, float64=1.7e308, bool=True, unix_timestamp=datetime(2200, 1, 1, tzinfo=UTC))),
    "beyond 2^53": (TODAY + timedelta(microseconds=1), {"a_int64": 2**53 + 1, "some_int64": [2**53 + 1, -(2**53) - 1, 0, 127, 128]}),
    "endless": (TODAY, {"a_float32": float("inf"), "a_float64": float("-inf"), "some_float64": [float("inf"), float("-inf"), -0.0]}),
    "of nothing": (TODAY, {f"some_{dtype.name}": [] for dtype in DTYPES.values() if dtype.element is None}),
    "null": (TODAY, {}),
    'Žluť 🦆\n"': (TODAY, {"a_string": '🦆 \u2028 \\ " </script>', "some_string": ["", "ž", "\0"]}),
    "outlived": (OLD, {"a_int64": 1, "a_string": "x"}),
    "": (TODAY, {"a_bool": False}),
}  # fmt: skip
"""What is stored of editors; of types that are not named, null."""
USERS = [*ROWS, "nobody"]
UNREADABLE = {
    "of nothing": (TypeError, "Couldn't infer value type from empty value"),
    "endless": (ValueError, "ValueType.STRING different from ValueType.DOUBLE"),
}
"""Of whom Feast's `remote` store cannot read what any server answers, and how it fails: it guesses types from JSON."""
BOTH, PLACES = [("ada", 7), ("ada", -1), ("žluť", 2**63 - 1)], [(7,), (-(2**63),), (0,)]
FEAST_SAYS = {"PRESENT": "PRESENT", "NULL_VALUE": "PRESENT", "OUTSIDE_MAX_AGE": "PRESENT", "NOT_FOUND": "PRESENT"}
"""What Feast's SDK and server say where we say otherwise."""


@pytest.fixture(scope="module")
def stack(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Valkey.start() as store:
        made = prepared(broker.address, store.url, tmp_path_factory.mktemp("serving"), with_every_type)
        users = [((user,), at, values) for user, (at, values) in ROWS.items()]
        write(made, view_of(made, BY_USER), users)
        write(
            made,
            view_of(made, BY_BOTH),
            [(key, TODAY, {"both_edits": n, "both_mean": n / 7}) for n, key in enumerate(BOTH)],
        )
        write(made, view_of(made, BY_PLACE), [(key, TODAY, {"place_edits": n}) for n, key in enumerate(PLACES)])
        say_fresh(made)
        yield made
        made.close()


def write(stack: Stack, view: View, rows: Sequence[tuple[tuple[Any, ...], datetime, Mapping[str, Any]]]) -> None:
    system = {"created": TODAY, "_version": 1, "_partition": 0, "_offset": 0}
    lines = [
        {**dict(zip(view.entity_names, key, strict=True)), "event_timestamp": at, **system, **values}
        for key, at, values in rows
    ]
    with closing(opened(stack)) as store:
        store.write(view, pa.Table.from_pylist(lines, view.row_schema))


@pytest.fixture(scope="module")
def ours(stack: Stack) -> Iterator[Client]:
    with serving(stack) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(stack: Stack) -> FeatureStore:
    return FeatureStore(repo_path=str(stack.workspace.project.root / "feature_repo"))


@pytest.fixture(scope="module")
def theirs(sdk: FeatureStore) -> Iterator[Client]:
    """Feast's own server, on the same store."""
    config = uvicorn.Config(get_app(sdk), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    runs = threading.Thread(target=server.run)
    runs.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Client(f"127.0.0.1:{port}")
    server.should_exit = True
    runs.join()


def references(stack: Stack, *views: str) -> list[str]:
    return [f"{name}:{feature.name}" for name in views for feature in view_of(stack, name).features]


ASKED: Mapping[str, tuple[tuple[str, ...], dict[str, list[Any]]]] = {
    "one join key": ((BY_USER,), {"user": USERS}),
    "two join keys": ((BY_BOTH,), {"user": ["ada", "žluť", "ada", "bob"], "metroCode": [-1, 2**63 - 1, 7, 7]}),
    "whole numbers": ((BY_PLACE,), {"metroCode": [0, 7, -(2**63), 1]}),
    "views of different join keys": ((BY_PLACE, BY_USER, BY_BOTH), {"user": ["ada", "ada", "null"], "metroCode": [7, 8, 7]}),
}  # fmt: skip


@pytest.mark.parametrize("full_feature_names", [False, True])
@pytest.mark.parametrize("what", ASKED)
def test_an_answer_is_that_of_feasts_own_server_but_for_statuses_that_are_true(
    stack: Stack, ours: Client, theirs: Client, what: str, *, full_feature_names: bool
) -> None:
    views, entities = ASKED[what]
    body = {"features": references(stack, *views), "entities": entities, "full_feature_names": full_feature_names}

    mine, feasts = (columns(client, body) for client in (ours, theirs))

    assert mine.keys() == feasts.keys()
    for name, column in mine.items():
        assert column.keys() == feasts[name].keys(), name
        assert column["values"] == feasts[name]["values"], name
        assert column["event_timestamps"] == feasts[name]["event_timestamps"], name
        assert [FEAST_SAYS[status] for status in column["statuses"]] == feasts[name]["statuses"], name


def columns(client: Client, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = client.ask("POST", READ, body)
    assert answer.status == 200, answer
    told = answer.told
    assert len(told["metadata"]["feature_names"]) == len(told["results"])
    return dict(zip(told["metadata"]["feature_names"], told["results"], strict=True))


def test_statuses_are_true(stack: Stack, ours: Client) -> None:
    told = columns(ours, {"features": references(stack, BY_USER), "entities": {"user": USERS}})

    for name in KINDS:
        for user, value, status in zip(USERS, told[name]["values"], told[name]["statuses"], strict=True):
            is_stored = user in ROWS and ROWS[user][1].get(name) is not None
            if user == "nobody":
                expected = "NOT_FOUND"
            elif user == "outlived":
                expected = "OUTSIDE_MAX_AGE"
            else:
                expected = "PRESENT" if is_stored else "NULL_VALUE"
            assert (status, value is not None) == (expected, is_stored), (name, user)


@pytest.mark.parametrize("what", ASKED)
def test_values_are_those_of_feasts_sdk(stack: Stack, ours: Client, sdk: FeatureStore, what: str) -> None:
    views, entities = ASKED[what]
    asked = references(stack, *views)
    rows = rows_of(entities)

    told = sdk.get_online_features(features=asked, entity_rows=rows).to_dict()
    mine = columns(ours, {"features": asked, "entities": entities})

    assert mine.keys() == told.keys()
    for name, column in mine.items():
        expected = [as_json(value) for value in told[name]]
        assert column["values"] == expected, name


def rows_of(entities: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]


def as_json(value: Any) -> Any:
    """Return a value of the SDK as Feast's server would spell it."""
    match value:
        case list():
            return [as_json(item) for item in value]
        case bytes():
            return b64encode(value).decode()
        case datetime():
            return (value.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
        case float() if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        case _:
            return value


def remote(sdk: FeatureStore, client: Client, *, path: str = "", cert: str = "", **more: Any) -> FeatureStore:
    """A Feast that reads from a server; all else is as it was."""
    told = {"type": "remote", "path": path or f"http://{client.address}", "cert": cert}
    config = sdk.config.model_dump(by_alias=True, exclude={"repo_path"}) | {"online_store": told} | more
    return FeatureStore(config=RepoConfig(**config, repo_path=sdk.repo_path))


@pytest.mark.parametrize("what", ASKED)
def test_feasts_remote_store_gives_the_same_values_from_us_as_from_its_own_server(
    stack: Stack, ours: Client, theirs: Client, sdk: FeatureStore, what: str
) -> None:
    views, entities = ASKED[what]
    asked = references(stack, *views)
    rows = [row for row in rows_of(entities) if row.get("user") not in UNREADABLE]

    mine, feasts = (
        remote(sdk, client).get_online_features(features=asked, entity_rows=rows).to_dict() for client in (ours, theirs)
    )

    assert mine == feasts


@pytest.mark.parametrize("user", UNREADABLE)
def test_what_feasts_remote_store_cannot_read_it_cannot_read_from_its_own_server_either(
    stack: Stack, ours: Client, theirs: Client, sdk: FeatureStore, user: str
) -> None:
    error, said = UNREADABLE[user]
    for client in (ours, theirs):
        with pytest.raises(error, match=said):
            remote(sdk, client).get_online_features(references(stack, BY_USER), [{"user": user}])


def test_feasts_remote_store_reads_over_tls_with_a_token(
    stack: Stack, sdk: FeatureStore, ours: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certified = certificate(tmp_path)
    files = {"FRESHET_SERVER_KEY": str(key), "FRESHET_SERVER_CERTIFICATE": str(certified)}
    asked, rows = references(stack, BY_USER), [{"user": "ada"}]
    with serving(stack, FRESHET_SERVER_TOKEN="s3cret", **files) as client:
        path, auth = f"https://{client.address}", {"type": "oidc", "token_env_var": "SERVING_TOKEN"}

        def told(token: str) -> Any:
            monkeypatch.setenv("SERVING_TOKEN", token)
            HttpSessionManager.close_session()  # Feast keeps one for all stores of a process
            store = remote(sdk, client, path=path, cert=str(certified), auth=auth)
            return store.get_online_features(features=asked, entity_rows=rows).to_dict()

        try:
            assert told("s3cret") == remote(sdk, ours).get_online_features(features=asked, entity_rows=rows).to_dict()
            with pytest.raises(RuntimeError, match="401"):
                told("other")
        finally:
            HttpSessionManager.close_session()


def test_feasts_remote_store_asks_for_a_feature_service(sdk: FeatureStore, ours: Client) -> None:
    service = sdk.get_feature_service(sdk.project)
    rows = [{"user": "ada", "page": "Main", "channel": "#en", "metroCode": 7}]

    mine = remote(sdk, ours).get_online_features(features=service, entity_rows=rows).to_dict()

    assert mine["a_int64"] == [300]
    assert mine["place_edits"] == [0]
    assert mine["page_edits_1h"] == [None]
