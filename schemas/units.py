"""Quantities as people write them: "10ms", "p99 < 10ms", "5 minutes", "50GB/day", "< 1%".

Durations become `timedelta` (whole microseconds), sizes become bytes. Sizes are decimal (1 GB = 10**9 bytes) unless
written with an `i` (GiB). Every parser raises `ValueError` with what it expected.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS = {
    "us": 1, "µs": 1, "microsecond": 1,
    "ms": 10**3, "msec": 10**3, "millisecond": 10**3,
    "s": 10**6, "sec": 10**6, "second": 10**6,
    "m": 60 * 10**6, "min": 60 * 10**6, "minute": 60 * 10**6,
    "h": 3600 * 10**6, "hr": 3600 * 10**6, "hour": 3600 * 10**6,
    "d": 86400 * 10**6, "day": 86400 * 10**6,
    "w": 7 * 86400 * 10**6, "week": 7 * 86400 * 10**6,
}  # fmt: skip
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BYTES |= {f"{prefix}i": 1024**power for power, prefix in enumerate(("k", "m", "g", "t", "p"), start=1)}

_AMOUNT = r"(?P<amount>\d+(?:\.\d+)?)\s*"
_DURATION = re.compile(_AMOUNT + r"(?P<unit>[a-zA-Zµ]+)", re.ASCII)
_SIZE = re.compile(_AMOUNT + r"(?P<prefix>[kmgtp]i?|)b(?:ytes?)?", re.IGNORECASE)
_OBJECTIVE = re.compile(
    r"(?:(?:p|P)(?P<percentile>\d{1,2}(?:\.\d+)?)\s*)?(?:(?P<sign><=?|≤|under|below)\s*)?(?P<duration>\S.*)"
)
_RATE = re.compile(r"(?:(?:<=?|≤|under|below)\s*)?(?P<amount>\d+(?:\.\d+)?)\s*(?P<sign>%?)", re.ASCII)


def duration(text: str) -> timedelta:
    """Read one positive duration.

    >>> duration("5 minutes"), duration("10ms"), duration("1.5h")
    (datetime.timedelta(seconds=300), datetime.timedelta(microseconds=10000), datetime.timedelta(seconds=5400))
    """
    found = _DURATION.fullmatch(text.strip().replace("μ", "µ")) or re.fullmatch(
        _AMOUNT + "(?P<unit>µs)", text.strip().replace("μ", "µ")
    )
    unit = found["unit"] if found else ""
    spellings = (unit, unit.lower(), unit.lower().removesuffix("s"))
    scale = next((_MICROSECONDS[word] for word in spellings if word in _MICROSECONDS), None)
    if found is None or scale is None:
        raise ValueError('a duration such as "10ms", "2 s", "5 minutes", "1h" or "7 days"')
    microseconds = Fraction(found["amount"]) * scale
    if microseconds.denominator != 1 or microseconds == 0:
        raise ValueError("a duration of at least one microsecond, in whole microseconds")
    try:
        return timedelta(microseconds=int(microseconds))
    except OverflowError:
        raise ValueError("a duration below 2.7 million years") from None


def microseconds(count: int) -> timedelta:
    """Return so many microseconds as a duration."""
    return timedelta(microseconds=count)


def count_us(length: timedelta) -> int:
    """Return how many microseconds a duration has.

    >>> count_us(timedelta(milliseconds=1.5))
    1500
    """
    return length // timedelta(microseconds=1)


def instant_us(instant: datetime) -> int:
    """Return an instant as µs since the Unix epoch; one without a zone is in UTC.

    >>> instant_us(datetime(1970, 1, 1, 0, 0, 1))
    1000000
    """
    return count_us((instant if instant.tzinfo else instant.replace(tzinfo=UTC)) - _EPOCH)


def instant_at(microseconds_count: int) -> datetime:
    """Return the instant so many µs after the Unix epoch, in UTC.

    >>> instant_at(1_000_000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return _EPOCH + timedelta(microseconds=microseconds_count)


def spell(length: timedelta) -> str:
    """Write a duration with its largest whole unit, as `duration` reads it.

    >>> spell(timedelta(minutes=10)), spell(timedelta(milliseconds=1500)), spell(timedelta(0))
    ('10m', '1500ms', '0s')
    """
    microseconds = count_us(length)
    if microseconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms", "us"):
        if microseconds % _MICROSECONDS[unit] == 0:
            return f"{microseconds // _MICROSECONDS[unit]}{unit}"
    raise AssertionError("every duration is a whole number of microseconds")


@dataclass(frozen=True, slots=True)
class Objective:
    """At least `percentile` percent of cases stay below `bound`."""

    percentile: float
    bound: timedelta

    def __str__(self) -> str:
        return f"p{self.percentile:g} < {spell(self.bound)}"


def objective(text: str) -> Objective:
    """Read a latency or freshness objective; a bare duration means the 99th percentile.

    >>> str(objective("p99 < 10ms")), str(objective("5 minutes")), str(objective("P99.9 <= 2s"))
    ('p99 < 10ms', 'p99 < 5m', 'p99.9 < 2s')
    """
    found = _OBJECTIVE.fullmatch(text.strip())
    if found is None:
        raise ValueError('an objective such as "p99 < 10ms" or "5 minutes"')
    percentile = float(found["percentile"] or 99)
    if percentile == 0:
        raise ValueError("a percentile above 0 and below 100")
    return Objective(percentile, duration(found["duration"]))


@dataclass(frozen=True, slots=True)
class Volume:
    """So many bytes in so much time."""

    bytes_count: int
    per: timedelta

    @property
    def bytes_per_day(self) -> float:
        """The same rate over 24 hours."""
        return self.bytes_count * (timedelta(days=1) / self.per)

    def __str__(self) -> str:
        prefix = next((word for word in "ptgmk" if self.bytes_count and self.bytes_count % _BYTES[word] == 0), "")
        return f"{self.bytes_count // _BYTES[prefix]}{prefix.upper()}B/{spell(self.per)}"


def size(text: str) -> int:
    """Read a size in bytes.

    >>> size("128MB"), size("1 GiB")
    (128000000, 1073741824)
    """
    found = _SIZE.fullmatch(text.strip())
    count = Fraction(found["amount"]) * _BYTES[found["prefix"].lower()] if found else Fraction(0)
    if count < 1:
        raise ValueError('a size such as "128MB" or "1 GiB"')
    return int(count)


def volume(text: str) -> Volume:
    """Read a data volume; without `/…` it is a day's.

    >>> volume("50GB/day").bytes_per_day, volume("1 MiB / hour").bytes_per_day, str(volume("1500 MB"))
    (50000000000.0, 25165824.0, '1500MB/1d')
    """
    size, _, per = text.partition("/")
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise ValueError('a volume such as "50GB/day" or "200 MiB/hour"')
    count = Fraction(found["amount"]) * _BYTES[found["prefix"].lower()]
    if not per.strip():
        return Volume(int(count), timedelta(days=1))
    span = per.strip()
    return Volume(int(count), duration(span if span[0].isdigit() else f"1 {span}"))


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of all cases that is tolerated, from 0 up to, but not, 1."""

    share: float

    def __str__(self) -> str:
        return f"< {float(f'{self.share * 100:.15g}'):.15g}%" if self.share else "0"


def rate(text: str) -> Rate:
    """Read a tolerated rate, in percent; a bare 0 tolerates none.

    >>> str(rate("< 1%")), rate("0.5%").share, str(rate("0")), rate("<= 0.1 %").share
    ('< 1%', 0.005, '0', 0.001)
    """
    found = _RATE.fullmatch(text.strip())
    share = Fraction(found["amount"]) / 100 if found else None
    if found is None or share is None or not (found["sign"] or share == 0) or share >= 1:
        raise ValueError('a rate below 100%, such as "< 1%", or 0')
    return Rate(float(share))
