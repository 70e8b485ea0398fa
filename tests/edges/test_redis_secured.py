"""The online store behind TLS and an ACL: for us and for Feast, and what is said of who is not let in."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from feast import FeatureStore
from feast.repo_config import load_repo_config
from secured import PASSWORD, SecuredRedis, secured_redis

from freshet.flows.edges import feast
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.store_config import store_config, write_store_config
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.view import Feature, View

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEW = View(
    "clicks_by_user", ("clicks",), (pa.field("user", pa.string()),), (Feature("clicks_10m", DTYPES["int64"], ""),)
)


@pytest.fixture(scope="module")
def server(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRedis]:
    with secured_redis(redis_program, tmp_path_factory.mktemp("redis")) as made:
        yield made


def rows(value: int) -> pa.Table:
    row = {"user": "ada", "event_timestamp": NOON, "clicks_10m": value, "_version": 1}
    return pa.Table.from_pylist([row], VIEW.row_schema)


def refusal(url: str, patience_s: float = 3600.0) -> str:
    store = OnlineStore(url, "shop", [VIEW], patience_s)
    with pytest.raises(Unavailable) as raised:
        store.write(VIEW, rows(1))
    said = str(raised.value)
    assert "cret" not in said
    return said


def test_rows_that_a_user_of_the_acl_writes_over_tls_are_read_by_us_and_by_feast(
    server: SecuredRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OnlineStore(server.url(), "shop", [VIEW], 10.0)
    assert 1 == store.write(VIEW, rows(7))
    (row,) = store.read(VIEW, [("ada",)])
    assert row is not None
    assert [("ada",)] == store.sample(VIEW, 5, 1)
    store.catch_up(5)
    store.close()

    config = store_config("shop", server.url(password="${REDIS_PASSWORD}"), tmp_path / "registry.db")
    write_store_config(tmp_path / "feature_store.yaml", config)
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    client = FeatureStore(config=load_repo_config(tmp_path, tmp_path / "feature_store.yaml"))
    feast.apply(
        store_config("shop", server.url(), tmp_path / "registry.db"), feast.repo_objects("shop", [VIEW], tmp_path)
    )

    assert "cret" not in (tmp_path / "feature_store.yaml").read_text()
    (served,) = feast.read_online(client, VIEW, [("ada",)])
    assert served is not None
    assert row.event_timestamp == served.event_timestamp


def test_a_wrong_password_is_said_at_once_and_where_to_look(server: SecuredRedis) -> None:
    said = refusal(server.url(password="not-the-secret"))

    assert f"online store Redis at localhost:{server.port} cannot be used: AuthenticationError: " in said
    assert said.endswith("Hint: user and password stand in onlineStore, or FRESHET_ONLINE_STORE")


def test_an_unknown_ca_is_said_at_once_and_how_to_name_it(server: SecuredRedis) -> None:
    said = refusal(server.url(ca=False))

    assert "certificate verify failed" in said
    assert said.endswith(
        "Hint: name the file of the CA that signed its certificate: rediss://…?ssl_ca_certs=/path/ca.pem"
    )


def test_a_user_that_is_not_allowed_enough_is_said_at_once(server: SecuredRedis) -> None:
    said = refusal(server.url(user="reader"))

    assert "no permissions" in said
    assert said.endswith("Hint: its ACL must allow this user what README says")


def test_a_client_without_tls_is_not_let_in(server: SecuredRedis) -> None:
    said = refusal(server.url(ca=False).replace("rediss:", "redis:"), patience_s=0.3)

    assert f"online store Redis at localhost:{server.port} cannot be used: " in said
    assert "rediss://" in said


def test_a_ca_file_that_is_not_there_is_refused(server: SecuredRedis, tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=f'"onlineStore" names a file by ssl_ca_certs that cannot be read; got {tmp_path}'
    ):
        OnlineStore(server.url(ca=False) + f"?ssl_ca_certs={tmp_path}/none.pem", "shop", [VIEW])
