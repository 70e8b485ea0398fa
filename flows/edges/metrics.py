"""What a process may be asked: `/metrics`, `/healthz`, `/readyz`. Names are an interface (DESIGN of Freshet, README).

Every label set that can occur is there from the start, as zero, so that `increase()` sees the first event.
"""

import contextlib
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client import Histogram as SingleHistogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from freshet.schemas.errors import Problem, Refused
from freshet.schemas.finding import Cause, Check, Finding, Outcome, Verdict
from freshet.schemas.rejects import Reason
from freshet.schemas.serving import Status
from freshet.schemas.view import Kind, View

FRESHNESS_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
ROUND_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
REQUEST_BUCKETS = (0.0005, 0.001, 0.0017, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
OUTCOMES = ("accepted", "rejected", "duplicate")
ENDPOINTS = ("get-online-features", "features", "events")
_STATUS_CLASSES = (2, 4, 5)
WHOLE_ROW = "*"
"""In place of a feature: the check is about whole rows, parts or partitions, or about several features at once."""


class Histogram(Collector):
    """A histogram that takes whole columns: `observe` of a million values is one numpy call."""

    def __init__(self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        self._name, self._description, self._labels = name, description, tuple(labels)
        self._bounds = np.array(buckets)
        self._counts: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def initialise(self, *labels: str) -> None:
        """Show a label set before its first value."""
        with self._lock:
            self._counts.setdefault(labels, np.zeros(len(self._bounds) + 1, np.int64))
            self._sums.setdefault(labels, 0.0)

    def observe(self, values: npt.NDArray[np.float64], *labels: str) -> None:
        """Count a column of values."""
        if len(values) == 0:
            return
        self.initialise(*labels)
        places = np.bincount(np.searchsorted(self._bounds, values, "left"), minlength=len(self._bounds) + 1)
        with self._lock:
            self._counts[labels] += places
            self._sums[labels] += float(values.sum())

    def quantile(self, share: float, *labels: str) -> float | None:
        """Return the bound of the bucket that holds the given share of all values; None if there are none."""
        with self._lock:
            counts = self._counts.get(labels)
            if counts is None or counts.sum() == 0:
                return None
            index = int(np.searchsorted(np.cumsum(counts), share * counts.sum(), "left"))
        return float(self._bounds[index]) if index < len(self._bounds) else float("inf")

    def collect(self) -> Iterator[Metric]:
        """Give Prometheus the cumulative buckets."""
        family = HistogramMetricFamily(self._name, self._description, labels=self._labels)
        with self._lock:
            for labels, counts in self._counts.items():
                bounds = [*map(floatToGoString, self._bounds), "+Inf"]
                family.add_metric(
                    labels, list(zip(bounds, np.cumsum(counts).tolist(), strict=True)), self._sums[labels]
                )
        yield family


class Metrics:
    """The metrics of a materializer."""

    def __init__(self, streams: Sequence[str], views: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "freshet_events", "Events taken from Kafka.", ["stream", "outcome"], registry=self.registry
        )
        self.rejects = Counter("freshet_rejects", "Events not accepted.", ["stream", "reason"], registry=self.registry)
        self.entityless = Counter(
            "freshet_events_without_entity",
            "Accepted events that add no row to a view, their entity being NULL.",
            ["feature_view"],
            registry=self.registry,
        )
        self.rows = Counter("freshet_rows", "Rows written.", ["feature_view", "store"], registry=self.registry)
        self.entities = Gauge(
            "freshet_state_entities", "Entities with state.", ["feature_view"], registry=self.registry
        )
        self.clock = Gauge(
            "freshet_clock_timestamp_seconds",
            "Up to when rows follow the time: every tick until then is written.",
            ["feature_view"],
            registry=self.registry,
        )
        self.epoch = Gauge(
            "freshet_checkpoint_last_success_timestamp_seconds",
            "When everything taken was last in every store.",
            registry=self.registry,
        )
        self.rejects_in_a_row = Gauge(
            "freshet_rejects_in_a_row",
            "Events not accepted since the last one that was; late and future ones are not counted.",
            ["stream"],
            registry=self.registry,
        )
        self.rejects_limit = Gauge(
            "freshet_rejects_in_a_row_limit", "After so many of them the flow stops.", registry=self.registry
        )
        self.offline_bytes = Counter(
            "freshet_offline_bytes", "Parquet that was made visible.", ["feature_view"], registry=self.registry
        )
        self.ledger_bytes = Gauge("freshet_ledger_bytes", "What the last commit's ledger took.", registry=self.registry)
        self.freshness = Histogram(
            "freshet_freshness_seconds",
            "From an event's being readable in Kafka to its row's being readable online.",
            ["feature_view", "kind"],
            FRESHNESS_BUCKETS,
        )
        self.registry.register(self.freshness)
        for stream in streams:  # every label set from the start
            for outcome in OUTCOMES:
                self.events.labels(stream, outcome)
            self.rejects_in_a_row.labels(stream)
            for reason in Reason:
                self.rejects.labels(stream, reason.value)
        for view in views:
            self.entities.labels(view)
            self.entityless.labels(view)
            self.offline_bytes.labels(view)
            self.clock.labels(view)
            for store in ("online", "offline"):
                self.rows.labels(view, store)
            for kind in Kind:
                self.freshness.initialise(view, kind.name.lower())

    def value(self, name: str, **labels: str) -> float:
        """Return what a counter or gauge stands at."""
        found = self.registry.get_sample_value(name, labels)
        assert found is not None, (name, labels)
        return found


class ValidatorMetrics:
    """The metrics of a validator.

    Of `checks`, by view, come the label sets that can occur; so do `receivers` of findings, and `windows` of the
    freshness objective's burn rates.
    """

    def __init__(
        self,
        views: Sequence[View],
        checks: Mapping[str, Sequence[Check]],
        receivers: Sequence[str] = (),
        windows: Sequence[str] = (),
    ) -> None:
        self.registry = CollectorRegistry()
        self._views = {view.name: view for view in views}
        self._counted = {view.name: (0, 0) for view in views}
        self.checked = Counter(
            "freshet_freshness_checked",
            "Looks at source partitions that had something to be fresh with.",
            ["feature_view"],
            registry=self.registry,
        )
        self.stale = Counter(
            "freshet_freshness_stale",
            "Such looks that found a message waiting for longer than the freshness target.",
            ["feature_view"],
            registry=self.registry,
        )
        self.burn_rate = Gauge(
            "freshet_freshness_burn_rate",
            "How many times too fast stale looks use up what the freshness objective leaves room for.",
            ["feature_view", "window"],
            registry=self.registry,
        )
        self.compared = Counter(
            "freshet_skew_compared",
            "Rows whose value of a feature was compared between both stores.",
            ["feature_view", "feature"],
            registry=self.registry,
        )
        self.confirmed = Counter(
            "freshet_skew_confirmed",
            f"Rows, parts or partitions in which a confirmed finding held, round by round; {WHOLE_ROW} for whole ones.",
            ["feature_view", "feature", "cause"],
            registry=self.registry,
        )
        self.inconclusive = Counter(
            "freshet_skew_inconclusive",
            "Rounds in which nothing could be said.",
            ["feature_view"],
            registry=self.registry,
        )
        self.errors = Counter(
            "freshet_validator_errors",
            "Rounds in which the validator itself failed.",
            ["feature_view"],
            registry=self.registry,
        )
        self.success = Gauge(
            "freshet_validator_last_success_timestamp_seconds",
            "When a round last ended in which the validator failed in no view.",
            registry=self.registry,
        )
        self.findings = Gauge(
            "freshet_validator_findings", "Findings that are open.", ["feature_view", "cause"], registry=self.registry
        )
        self.failures = Counter(
            "freshet_finding_delivery_failures",
            "Attempts to tell a receiver of findings that failed.",
            ["receiver"],
            registry=self.registry,
        )
        self.dropped = Counter(
            "freshet_findings_dropped",
            "News of findings that a receiver was never told.",
            ["receiver"],
            registry=self.registry,
        )
        self.canaries = Gauge(
            "freshet_canary_last_timestamp_seconds",
            "When the newest canary was sent that all views of its stream have.",
            ["partition", "store"],
            registry=self.registry,
        )
        self.docs_failures = Counter(
            "freshet_data_docs_failures", "Pages of Data Docs that could not be written.", registry=self.registry
        )
        self.duration = Histogram(
            "freshet_validator_round_duration_seconds", "How long a round took.", (), ROUND_BUCKETS
        )
        self.registry.register(self.duration)
        self.duration.initialise()
        for receiver in receivers:
            self.failures.labels(receiver)
            self.dropped.labels(receiver)
        for view in views:
            self.checked.labels(view.name)
            self.stale.labels(view.name)
            for window in windows:
                self.burn_rate.labels(view.name, window)
            self.inconclusive.labels(view.name)
            self.errors.labels(view.name)
            for feature in view.features:
                self.compared.labels(view.name, feature.name)
            for cause in Cause:
                self.findings.labels(view.name, cause.value)
            for check in checks[view.name]:
                if check.cause is not None:
                    self.confirmed.labels(view.name, _feature(check.features), check.cause.value)

    def observe(self, verdicts: Sequence[Verdict], open_: Iterable[Finding], at: datetime, duration_s: float) -> None:
        """Count a round: its verdicts, with confirmed findings only, and all findings that are open after it."""
        for verdict in verdicts:
            for feature in self._views[verdict.view].features:
                self.compared.labels(verdict.view, feature.name).inc(verdict.compared)
            for finding in verdict.findings:
                labels = verdict.view, _feature(finding.features), finding.cause.value
                self.confirmed.labels(*labels).inc(finding.count)
            if verdict.outcome is Outcome.INCONCLUSIVE:
                self.inconclusive.labels(verdict.view).inc()
            if verdict.outcome is Outcome.VALIDATOR_ERROR:
                self.errors.labels(verdict.view).inc()
        if all(verdict.outcome is not Outcome.VALIDATOR_ERROR for verdict in verdicts):
            self.success.set(at.timestamp())
        counts = Tally((finding.view, finding.cause) for finding in open_)
        for view in self._views:
            for cause in Cause:
                self.findings.labels(view, cause.value).set(counts[view, cause])
        self.duration.observe(np.array([duration_s]))

    def observe_freshness(
        self, view_name: str, checked_count: int, stale_count: int, burn_rates: Mapping[str, float]
    ) -> None:
        """Note how fresh a view was seen to be: both counts are of all looks so far, burn rates by window."""
        checked_before, stale_before = self._counted[view_name]
        self._counted[view_name] = checked_count, stale_count
        self.checked.labels(view_name).inc(checked_count - checked_before)
        self.stale.labels(view_name).inc(stale_count - stale_before)
        for window, rate in burn_rates.items():
            self.burn_rate.labels(view_name, window).set(rate)

    def value(self, name: str, **labels: str) -> float:
        """Return what a counter or gauge stands at."""
        found = self.registry.get_sample_value(name, labels)
        assert found is not None, (name, labels)
        return found


class ServerMetrics:
    """The metrics of one of the server's workers; `bound` is the declared onlineLatency's, and one of the buckets.

    `request` and `served` stand on the way of each request: they look nothing up by label, and cost 2 to 3 µs.
    """

    def __init__(self, views: Sequence[str], bound: timedelta) -> None:
        self.registry = CollectorRegistry()
        self._bound, self._timed = bound, self._timing(bound)
        requests = Counter(
            "freshet_requests",
            "Requests, by the class of their answers.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self._values = Counter(
            "freshet_served_values",
            "Values of features in answers, by the status that they have there.",
            ["feature_view", "status"],
            registry=self.registry,
        )
        self._duration = {endpoint: self._timed.labels(endpoint) for endpoint in ENDPOINTS}
        self._requests = {
            (endpoint, first): requests.labels(endpoint, f"{first}xx")
            for endpoint in ENDPOINTS
            for first in _STATUS_CLASSES
        }
        self._served = dict[str, dict[Status, Counter]]()
        self._count(views)

    def follow(self, views: Sequence[str], bound: timedelta) -> None:
        """Go on with these views, and the bound that is declared by now.

        What was counted of views stays. A histogram cannot get a bucket more: with another bound it begins at 0, which
        Prometheus takes for what it is, as after a restart.
        """
        self._count(views)
        if bound != self._bound:
            self.registry.unregister(self._timed)
            self._bound, self._timed = bound, self._timing(bound)
            self._duration = {endpoint: self._timed.labels(endpoint) for endpoint in ENDPOINTS}

    def _count(self, views: Sequence[str]) -> None:
        for view in views:
            self._served[view] = {status: self._values.labels(view, status.lower()) for status in Status}

    def _timing(self, bound: timedelta) -> SingleHistogram:
        return SingleHistogram(
            "freshet_request_duration_seconds",
            "How long requests took that were answered with 2xx.",
            ["endpoint"],
            buckets=sorted({*REQUEST_BUCKETS, bound.total_seconds()}),
            registry=self.registry,
        )

    def request(self, endpoint: str, status_code: int, seconds: float) -> None:
        """Count an answer to one of `ENDPOINTS`.

        Only those of 2xx have a duration: so what was neither late nor an error of ours is one bucket, and a fast 503
        does not make latency look better.
        """
        self._requests[endpoint, status_code // 100].inc()
        if status_code < 300:
            self._duration[endpoint].observe(seconds)

    def served(self, view_name: str, counts_by_status: Mapping[Status, int]) -> None:
        """Count the values of a view in an answer."""
        counters = self._served[view_name]
        for status, count in counts_by_status.items():
            if count:
                counters[status].inc(count)


def _feature(features: Sequence[str]) -> str:
    return features[0] if len(features) == 1 else WHOLE_ROW


class Server:
    """Serves a registry over HTTP until closed, on loopback unless told otherwise.

    `trouble` says what is wrong, or nothing; `unready` what is missing still, which is the same if it is not given.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        trouble: Callable[[], str],
        unready: Callable[[], str] | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        answers = {"/healthz": trouble, "/readyz": unready or trouble}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name http.server calls
                """Answer Prometheus, or a health check."""
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path in answers:
                    said = answers[self.path]()
                    self._answer(503 if said else 200, "text/plain", f"{said or 'ok'}\n".encode())
                else:
                    self._answer(404, "text/plain", b"/metrics, /healthz or /readyz\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked no longer waits
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep requests out of the log."""

        try:
            self._server = ThreadingHTTPServer((host or "127.0.0.1", int(port)), Handler)
        except (OSError, OverflowError, ValueError) as error:
            hint = "name a free one with --metrics HOST:PORT or FRESHET_METRICS_ADDRESS; port 0 takes any"
            raise Refused([Problem("address", address, f"cannot serve metrics: {error}", hint=hint)]) from error
        self._server.daemon_threads = True
        self.address = f"{self._server.server_address[0]!s}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
