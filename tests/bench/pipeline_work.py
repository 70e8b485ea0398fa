"""The work on which pipelines are measured: made visits in Kafka, and windowed features of them by user.

Whatever is measured beside Freshet gets the very same events, and computes the very same features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

PROJECT, STREAM, ENTITY, PARTITIONS, PARTITIONER = "pipeline", "visits", "user", 8, "murmur2_random"
VIEW = f"{STREAM}_by_{ENTITY}"
ENTITIES_COUNT, ZIPF, STEP_MS, LATENESS = 100_000, 1.1, 1, timedelta(seconds=10)
START = datetime(2026, 1, 1, tzinfo=UTC)
SECTIONS = (
    *("arts", "books", "business", "cars", "cooking", "culture", "europe", "fashion", "film", "food"),
    *("games", "garden", "health", "music", "opinion", "politics", "science", "sports", "travel", "weather"),
)
_BATCH_EVENTS = 50_000

_CONTRACT = f"""\
from datetime import timedelta

from pydantic import AwareDatetime

from freshet.schemas.event import Event, Stream


class Visit(Event):
    stream = Stream(
        topic="{{topic}}",
        key="{ENTITY}",
        event_time="at",
        event_id="id",
        lateness=timedelta(seconds={LATENESS.total_seconds():g}),
        partitions={PARTITIONS},
    )

    at: AwareDatetime
    id: str
    {ENTITY}: str
    seconds: float
    amount: int
    section: str
"""


def contract(topic: str = STREAM) -> str:
    """Return the contract of visits in some topic."""
    return _CONTRACT.format(topic=topic)


@dataclass(frozen=True)
class Feature:
    """One declared feature; `{window}` in its expression stands for the window's name."""

    name: str
    dtype: str
    expression: str
    window: str
    decay: str | None = None

    @property
    def sql(self) -> str:
        """The transformation."""
        return self.expression.format(window=window_name(self.window))


_SHARE = f"sum(amount) FILTER (WHERE section = '{SECTIONS[0]}') OVER {{window}} / nullif(count(*) OVER {{window}}, 0)"
FEATURES = (
    Feature("visits_count_10m", "int64", "count(*) OVER {window}", "10 minutes"),
    Feature("amount_sum_10m", "int64", "sum(amount) OVER {window}", "10 minutes"),
    Feature("seconds_avg_10m", "float64", "avg(seconds) OVER {window}", "10 minutes"),
    Feature("visits_count_1h", "int64", "count(*) OVER {window}", "1 hour"),
    Feature("amount_sum_1h", "int64", "sum(amount) OVER {window}", "1 hour"),
    Feature("amount_max_1h", "int64", "max(amount) OVER {window}", "1 hour"),
    Feature("seconds_min_1h", "float64", "min(seconds) OVER {window}", "1 hour"),
    Feature("arts_share_1h", "float64", _SHARE, "1 hour"),
)
"""The eight features that everything is measured with unless it says otherwise."""


def window_name(window: str) -> str:
    """Return what a window is called in a declaration.

    >>> window_name("10 minutes")
    'user_10_minutes'
    """
    return f"{ENTITY}_{window.replace(' ', '_')}"


def features_of(count: int, windows: Sequence[str]) -> tuple[Feature, ...]:
    """Return so many different features, spread over windows.

    >>> [(one.name, one.sql) for one in features_of(2, ["1 minute"])]
    [('f000', 'count(*) OVER user_1_minute'), ('f001', 'sum(amount) OVER user_1_minute')]
    """
    kinds = (
        ("int64", "count(*) OVER {window}"),
        ("int64", "sum(amount) OVER {window}"),
        ("float64", "avg(seconds) OVER {window}"),
        ("int64", "max(amount) OVER {window}"),
        ("float64", "min(seconds) OVER {window}"),
        ("float64", _SHARE),
        *(
            ("int64", f"{function} FILTER (WHERE section = '{section}') OVER {{window}}")
            for function in ("sum(amount)", "count(*)")
            for section in SECTIONS[1:]
        ),
    )
    made = []
    for number in range(count):
        dtype, expression = kinds[number // len(windows) % len(kinds)]
        made.append(Feature(f"f{number:03d}", dtype, expression, windows[number % len(windows)]))
    return tuple(made)


def declaration(online_url: str, features: Sequence[Feature] = FEATURES, decay: str | None = None) -> str:
    """Return a declaration of features; `decay` is `off`, an interval, or None for the default."""
    windows = {
        window_name(window): f"PARTITION BY {ENTITY} ORDER BY event_timestamp"
        f" RANGE BETWEEN INTERVAL '{window}' PRECEDING AND CURRENT ROW"
        for window in dict.fromkeys(feature.window for feature in features)
    }
    declared: dict[str, Any] = {
        "project": PROJECT,
        "windows": windows,
        "featureDefinitions": [
            {"name": one.name, "dtype": one.dtype, "source": STREAM, "transformation": one.sql}
            | ({} if one.decay is None else {"decay": one.decay})
            for one in features
        ],
        "servingRequirements": {"onlineLatency": "p99 < 10ms", "freshnessTarget": "p99 < 2s"},
        "infrastructure": {"onlineStore": online_url, "offlineStore": "data/offline", "computeEngine": "bytewax"},
    }
    if decay is not None:
        declared["views"] = {VIEW: {"decay": decay}}
    return yaml.safe_dump(declared, sort_keys=False, width=1000)


@dataclass(frozen=True)
class Visits:
    """Which events there are; the same ones for the same numbers.

    Users follow a Zipf law over so many entities; or they come one after another, if `in_turn`. `hot_share` of all events
    are about one user more, `u0`.
    """

    count: int
    entities_count: int = ENTITIES_COUNT
    seed: int = 1
    hot_share: float = 0.0
    start: datetime = START
    step_ms: float = STEP_MS
    in_turn: bool = False

    def columns(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Give the events' values, some at a time: `ms` since the epoch, `user`, `seconds`, `amount`, `section`."""
        chance = np.random.default_rng(self.seed)
        shares = np.arange(1, self.entities_count + 1, dtype=np.float64) ** -ZIPF
        bounds = np.cumsum(shares) / shares.sum()
        bounds[-1] = 1.0
        start_ms = int(self.start.timestamp() * 1000)
        for first in range(0, self.count, _BATCH_EVENTS):
            count = min(_BATCH_EVENTS, self.count - first)
            users = 1 + np.searchsorted(bounds, chance.random(count), side="right")
            if self.in_turn:
                users = 1 + np.arange(first, first + count) % self.entities_count
            yield {
                "ms": start_ms + (np.arange(first, first + count) * self.step_ms).astype(np.int64),
                "user": np.where(chance.random(count) < self.hot_share, 0, users),
                "seconds": np.round(chance.gamma(2.0, 30.0, count), 3),
                "amount": chance.integers(0, 1000, count),
                "section": chance.integers(0, len(SECTIONS), count),
            }

    def messages(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Give each event as Kafka is to hold it: key, value, and the time in ms since the epoch.

        >>> key, value, ms = next(Visits(1).messages())
        >>> key, ms
        (b'u48', 1767225600000)
        >>> print(value.decode())
        {"at": "2026-01-01T00:00:00.000Z", "id": "v1-000000000", "user": "u48", "seconds": 63.921, "amount": 249, "section": "europe"}
        """
        number = 0
        for columns in self.columns():
            times = columns["ms"].astype("datetime64[ms]").astype(str).tolist()
            values = (columns[name].tolist() for name in ("ms", "user", "seconds", "amount", "section"))
            for at, ms, user, seconds, amount, section in zip(times, *values, strict=True):
                yield (
                    b"u%d" % user,
                    f'{{"at": "{at}Z", "id": "v{self.seed}-{number:09d}", "user": "u{user}", "seconds": {seconds},'
                    f' "amount": {amount}, "section": "{SECTIONS[section]}"}}'.encode(),
                    ms,
                )
                number += 1
