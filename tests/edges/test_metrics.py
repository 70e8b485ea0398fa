"""What Prometheus is told: all label sets from the start, and histograms as its own client makes them."""

import itertools
import re
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from prometheus_client import CollectorRegistry, Counter
from prometheus_client import Histogram as TheirHistogram
from prometheus_client.exposition import generate_latest

from freshet.flows.edges.metrics import (
    ENDPOINTS,
    FRESHNESS_BUCKETS,
    OUTCOMES,
    REQUEST_BUCKETS,
    ROUND_BUCKETS,
    Histogram,
    Metrics,
    Server,
    ServerMetrics,
    ValidatorMetrics,
)
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused
from freshet.schemas.finding import Cause, Check, Finding, Frame, Outcome, Verdict
from freshet.schemas.rejects import Reason
from freshet.schemas.serving import Status
from freshet.schemas.view import Feature, View

STREAMS, VIEWS = ("clicks", "orders"), ("by_user", "by_page")


def test_every_label_set_is_zero_from_the_start() -> None:
    metrics = Metrics(STREAMS, VIEWS)

    for stream in STREAMS:
        for outcome in OUTCOMES:
            assert metrics.value("freshet_events_total", stream=stream, outcome=outcome) == 0
        for reason in Reason:
            assert metrics.value("freshet_rejects_total", stream=stream, reason=reason.value) == 0
    for view in VIEWS:
        assert metrics.value("freshet_state_entities", feature_view=view) == 0
        for store in ("online", "offline"):
            assert metrics.value("freshet_rows_total", feature_view=view, store=store) == 0
        for kind in ("event", "decay", "correction"):
            assert metrics.value("freshet_freshness_seconds_count", feature_view=view, kind=kind) == 0
            assert metrics.value("freshet_freshness_seconds_sum", feature_view=view, kind=kind) == 0
            for bound in (*map(str, FRESHNESS_BUCKETS), "+Inf"):
                assert metrics.value("freshet_freshness_seconds_bucket", feature_view=view, kind=kind, le=bound) == 0
    assert metrics.value("freshet_checkpoint_last_success_timestamp_seconds") == 0


VALUES = arrays.arrays(
    np.float64, st.integers(0, 30), elements=st.sampled_from([*FRESHNESS_BUCKETS, 0.0, 1e9]) | st.floats(0, 1e5)
)


@given(batches=st.lists(st.tuples(VALUES, st.sampled_from(["a", "b"])), max_size=5))
def test_a_histogram_is_what_prometheus_own_client_makes_of_the_same_values(
    batches: list[tuple[np.ndarray, str]],
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("age_seconds", "Age.", ["view"], FRESHNESS_BUCKETS)
    ours.register(mine)
    reference = TheirHistogram("age_seconds", "Age.", ["view"], buckets=FRESHNESS_BUCKETS, registry=theirs)
    for values, view in [*batches, (np.zeros(0), "idle")]:
        mine.initialise(view)
        mine.observe(values, view)
        child = reference.labels(view)
        for value in values:
            child.observe(value)

    def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *itertools.chain(*sorted(sample.labels.items()))): sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }

    assert samples(theirs) == pytest.approx(samples(ours))


def test_a_quantile_is_the_bound_of_the_bucket_that_holds_it() -> None:
    histogram = Histogram("age_seconds", "Age.", ["view"], (1.0, 2.0, 4.0))
    assert histogram.quantile(0.5, "a") is None

    histogram.observe(np.array([0.5] * 90 + [1.5] * 9 + [9.0]), "a")

    assert [histogram.quantile(share, "a") for share in (0.5, 0.9, 0.99, 1.0)] == [1.0, 1.0, 2.0, float("inf")]


VIEW = View(
    "by_user", ("edits",), (), (Feature("edits", DTYPES["int64"], "…"), Feature("share", DTYPES["float64"], "…"))
)
OTHER = View("by_page", ("edits",), (), (Feature("views", DTYPES["int64"], "…"),))
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def checked(cause: Cause | None, *features: str) -> Check:
    return Check(f"by_user.{cause}", "…", Frame.ROWS, "…", {}, cause, features=features)


CHECKS = {
    "by_user": (
        checked(Cause.DTYPE, "edits"),
        checked(Cause.LOST_ONLINE_WRITE),
        checked(Cause.STALE_ONLINE, "edits", "share"),
        checked(None),
    ),
    "by_page": (),
}


def found(cause: Cause, *features: str, count: int = 1) -> Finding:
    return Finding("by_user", f"by_user.{cause}", cause, features, (), "…", count)


def validator_metrics() -> ValidatorMetrics:
    return ValidatorMetrics([VIEW, OTHER], CHECKS, ["topic", "webhook"], ["5m", "1h"])


def test_every_label_set_of_a_validator_is_zero_from_the_start() -> None:
    value = validator_metrics().value

    assert value("freshet_skew_compared_total", feature_view="by_user", feature="share") == 0
    assert value("freshet_skew_compared_total", feature_view="by_page", feature="views") == 0
    for feature, cause in (("edits", "dtype"), ("*", "lost_online_write"), ("*", "stale_online")):
        assert value("freshet_skew_confirmed_total", feature_view="by_user", feature=feature, cause=cause) == 0
    for view in ("by_user", "by_page"):
        assert value("freshet_skew_inconclusive_total", feature_view=view) == 0
        assert value("freshet_validator_errors_total", feature_view=view) == 0
        assert value("freshet_freshness_checked_total", feature_view=view) == 0
        assert value("freshet_freshness_stale_total", feature_view=view) == 0
        for window in ("5m", "1h"):
            assert value("freshet_freshness_burn_rate", feature_view=view, window=window) == 0
        for cause in Cause:
            assert value("freshet_validator_findings", feature_view=view, cause=cause.value) == 0
    for receiver in ("topic", "webhook"):
        assert value("freshet_finding_delivery_failures_total", receiver=receiver) == 0
        assert value("freshet_findings_dropped_total", receiver=receiver) == 0
    assert value("freshet_validator_last_success_timestamp_seconds") == 0
    assert value("freshet_data_docs_failures_total") == 0
    assert value("freshet_validator_round_duration_seconds_count") == 0
    for bound in (*map(str, ROUND_BUCKETS), "+Inf"):
        assert value("freshet_validator_round_duration_seconds_bucket", le=bound) == 0


def test_a_round_is_counted() -> None:
    metrics = validator_metrics()
    findings = (found(Cause.DTYPE, "edits", count=3), found(Cause.LOST_ONLINE_WRITE, count=2))
    verdicts = (Verdict("by_user", Outcome.VIOLATED, 40, findings), Verdict("by_page", Outcome.INCONCLUSIVE, 0))

    metrics.observe(verdicts, findings[:1], AT, 0.3)
    metrics.observe(verdicts[:1], (), AT + timedelta(seconds=5), 0.3)

    value = metrics.value
    assert value("freshet_skew_compared_total", feature_view="by_user", feature="edits") == 80
    assert value("freshet_skew_compared_total", feature_view="by_user", feature="share") == 80
    assert value("freshet_skew_confirmed_total", feature_view="by_user", feature="edits", cause="dtype") == 6
    assert value("freshet_skew_confirmed_total", feature_view="by_user", feature="*", cause="lost_online_write") == 4
    assert value("freshet_skew_inconclusive_total", feature_view="by_page") == 1
    assert value("freshet_skew_inconclusive_total", feature_view="by_user") == 0
    assert value("freshet_validator_findings", feature_view="by_user", cause="dtype") == 0
    assert value("freshet_validator_last_success_timestamp_seconds") == AT.timestamp() + 5
    assert value("freshet_validator_round_duration_seconds_bucket", le="0.5") == 2
    assert value("freshet_validator_round_duration_seconds_bucket", le="0.25") == 0


def test_looks_at_freshness_are_counted_once_and_burn_rates_are_the_newest() -> None:
    metrics = validator_metrics()

    metrics.observe_freshness("by_user", 40, 1, {"5m": 2.5, "1h": 0.2})
    metrics.observe_freshness("by_user", 48, 3, {"5m": 5.0, "1h": 0.4})

    value = metrics.value
    assert value("freshet_freshness_checked_total", feature_view="by_user") == 48
    assert value("freshet_freshness_stale_total", feature_view="by_user") == 3
    assert value("freshet_freshness_burn_rate", feature_view="by_user", window="5m") == 5.0
    assert value("freshet_freshness_burn_rate", feature_view="by_user", window="1h") == 0.4
    assert value("freshet_freshness_checked_total", feature_view="by_page") == 0


def test_findings_that_are_open_are_shown_until_they_are_over() -> None:
    metrics = validator_metrics()

    metrics.observe((), (found(Cause.DTYPE), found(Cause.DTYPE), found(Cause.STALE_ONLINE)), AT, 0.1)

    assert metrics.value("freshet_validator_findings", feature_view="by_user", cause="dtype") == 2
    assert metrics.value("freshet_validator_findings", feature_view="by_user", cause="stale_online") == 1
    assert metrics.value("freshet_validator_findings", feature_view="by_page", cause="dtype") == 0


def test_views_that_are_no_more_show_nothing_that_is_so_now_and_others_are_zero_from_the_start() -> None:
    metrics = validator_metrics()
    metrics.observe((Verdict("by_user", Outcome.OK, 7),), (found(Cause.DTYPE),), AT, 0.1)
    metrics.observe_freshness("by_page", 40, 4, {"5m": 2.5, "1h": 0.2})
    metrics.canaries.labels("edits/0", "online").set(1)
    later = View("by_city", ("edits",), (), (Feature("rides", DTYPES["int64"], "…"),))

    metrics.follow([OTHER, later], {"by_page": (), "by_city": ()}, {"by_page": (40, 4), "by_city": (40, 4)})
    metrics.observe_freshness("by_page", 48, 5, {})
    metrics.observe_freshness("by_city", 48, 5, {})
    metrics.observe((Verdict("by_city", Outcome.OK, 3),), (), AT, 0.1)

    value = metrics.registry.get_sample_value
    assert value("freshet_validator_findings", {"feature_view": "by_user", "cause": "dtype"}) is None
    assert value("freshet_freshness_burn_rate", {"feature_view": "by_user", "window": "5m"}) is None
    assert value("freshet_canary_last_timestamp_seconds", {"partition": "edits/0", "store": "online"}) is None
    assert value("freshet_skew_compared_total", {"feature_view": "by_user", "feature": "edits"}) == 7
    assert value("freshet_freshness_checked_total", {"feature_view": "by_page"}) == 48
    assert value("freshet_freshness_stale_total", {"feature_view": "by_page"}) == 5
    assert value("freshet_freshness_checked_total", {"feature_view": "by_city"}) == 8
    assert value("freshet_freshness_stale_total", {"feature_view": "by_city"}) == 1
    assert value("freshet_skew_compared_total", {"feature_view": "by_city", "feature": "rides"}) == 3
    assert value("freshet_validator_findings", {"feature_view": "by_city", "cause": "dtype"}) == 0


def test_a_round_in_which_the_validator_failed_in_one_view_is_no_success() -> None:
    metrics = validator_metrics()
    metrics.observe((Verdict("by_user", Outcome.OK, 1), Verdict("by_page", Outcome.OK, 1)), (), AT, 0.1)

    later = AT + timedelta(seconds=5)
    metrics.observe((Verdict("by_user", Outcome.OK, 1), Verdict("by_page", Outcome.VALIDATOR_ERROR, 0)), (), later, 0.1)

    assert metrics.value("freshet_validator_last_success_timestamp_seconds") == AT.timestamp()
    assert metrics.value("freshet_validator_errors_total", feature_view="by_page") == 1
    assert metrics.value("freshet_validator_errors_total", feature_view="by_user") == 0


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


BOUND = timedelta(milliseconds=7)


@pytest.fixture
def serving() -> ServerMetrics:
    return ServerMetrics(VIEWS, BOUND)


def test_every_label_set_of_a_server_is_zero_from_the_start(serving: ServerMetrics) -> None:
    value = serving.registry.get_sample_value

    for endpoint in ENDPOINTS:
        assert value("freshet_request_duration_seconds_count", {"endpoint": endpoint}) == 0
        for status in ("2xx", "4xx", "5xx"):
            assert value("freshet_requests_total", {"endpoint": endpoint, "status": status}) == 0
    for view in VIEWS:
        for status in Status:
            assert value("freshet_served_values_total", {"feature_view": view, "status": status.lower()}) == 0


@pytest.mark.parametrize("bound", [BOUND, timedelta(milliseconds=10), timedelta(minutes=1)])
def test_the_declared_bound_is_one_of_the_buckets_once(bound: timedelta) -> None:
    serving = ServerMetrics(VIEWS, bound)

    serving.request("features", 200, bound.total_seconds())

    text = generate_latest(serving.registry).decode()
    bounds = re.findall(r'^freshet_request_duration_seconds_bucket{endpoint="features",le="(.+)"}', text, re.MULTILINE)
    assert sorted({*REQUEST_BUCKETS, bound.total_seconds(), float("inf")}) == [*map(float, bounds)]
    labels = {"endpoint": "features", "le": f"{bound.total_seconds()}"}
    assert serving.registry.get_sample_value("freshet_request_duration_seconds_bucket", labels) == 1


def test_requests_are_counted_by_the_class_of_their_answers_and_only_good_ones_have_a_duration(
    serving: ServerMetrics,
) -> None:
    for code in (200, 201, 400, 404, 503):
        serving.request("events", code, 0.25)

    value = serving.registry.get_sample_value
    counts = [value("freshet_requests_total", {"endpoint": "events", "status": f"{first}xx"}) for first in (2, 4, 5)]
    assert [2, 2, 1] == counts
    assert value("freshet_request_duration_seconds_count", {"endpoint": "events"}) == 2
    assert value("freshet_request_duration_seconds_sum", {"endpoint": "events"}) == 0.5
    assert value("freshet_requests_total", {"endpoint": "features", "status": "2xx"}) == 0


def test_values_that_were_served_are_counted_by_status(serving: ServerMetrics) -> None:
    serving.served("by_user", {Status.PRESENT: 3, Status.NOT_FOUND: 0, Status.OUTSIDE_MAX_AGE: 2})
    serving.served("by_user", {Status.PRESENT: 1})

    found = {
        status: serving.registry.get_sample_value(
            "freshet_served_values_total", {"feature_view": "by_user", "status": status}
        )
        for status in map(str.lower, Status)
    }
    assert {"present": 4, "null_value": 0, "not_found": 0, "outside_max_age": 2} == found


def test_a_server_that_follows_another_declaration_counts_on_and_has_its_bound(serving: ServerMetrics) -> None:
    serving.served("by_user", {Status.PRESENT: 3})
    serving.request("features", 200, 0.001)

    serving.follow(["by_city"], BOUND)
    serving.served("by_city", {Status.PRESENT: 1})
    serving.served("by_user", {Status.PRESENT: 1})  # by a request that began before

    value = serving.registry.get_sample_value
    assert value("freshet_served_values_total", {"feature_view": "by_user", "status": "present"}) == 4
    assert value("freshet_served_values_total", {"feature_view": "by_city", "status": "present"}) == 1
    assert value("freshet_request_duration_seconds_count", {"endpoint": "features"}) == 1

    serving.follow(["by_city"], timedelta(milliseconds=13))
    serving.request("features", 200, 0.0129)

    assert value("freshet_request_duration_seconds_bucket", {"endpoint": "features", "le": "0.013"}) == 1
    assert value("freshet_requests_total", {"endpoint": "features", "status": "2xx"}) == 2


def test_metrics_and_health_are_served() -> None:
    registry, trouble = CollectorRegistry(), [""]
    Counter("hits", "Hits.", registry=registry).inc(3)
    server = Server("127.0.0.1:0", registry, lambda: trouble[0])
    try:
        assert get(f"http://{server.address}/metrics") == (200, generate_latest(registry))
        assert get(f"http://{server.address}/healthz") == (200, b"ok\n")
        trouble[0] = "stopping"
        assert get(f"http://{server.address}/healthz") == (503, b"stopping\n")
        assert get(f"http://{server.address}/readyz") == (503, b"stopping\n")
        assert get(f"http://{server.address}/other")[0] == 404
    finally:
        server.close()


def test_a_process_may_be_well_and_not_ready_yet() -> None:
    unready = ["restoring"]
    server = Server("127.0.0.1:0", CollectorRegistry(), lambda: "", lambda: unready[0])
    try:
        assert get(f"http://{server.address}/healthz") == (200, b"ok\n")
        assert get(f"http://{server.address}/readyz") == (503, b"restoring\n")
        unready[0] = ""
        assert get(f"http://{server.address}/readyz") == (200, b"ok\n")
    finally:
        server.close()


def test_an_address_without_a_host_is_loopback() -> None:
    server = Server(":0", CollectorRegistry(), lambda: "")
    server.close()

    assert server.address.startswith("127.0.0.1:")


def test_an_address_that_is_taken_is_refused() -> None:
    server = Server("127.0.0.1:0", CollectorRegistry(), lambda: "")
    try:
        with pytest.raises(Refused, match=f'address "{server.address}" cannot serve metrics: .*in use.*Hint: '):
            Server(server.address, CollectorRegistry(), lambda: "")
    finally:
        server.close()


@pytest.mark.parametrize(
    "address", ["", "localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999", "127.0.0.1:-1"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(Refused, match="cannot serve metrics"):
        Server(address, CollectorRegistry(), lambda: "")
