"""What another process of ours says of itself, at /metrics or /healthz."""

import math
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from freshet.schemas.errors import Unavailable

_UNWELL = 503

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""Metrics by name and labels, these sorted."""


def scrape(address: str, limit_s: float = 10.0) -> Samples:
    """Return all metrics of the process at `host:port`; raises `Unavailable` if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=limit_s) as answer:
            text = answer.read().decode()
    except urllib.error.URLError as error:
        raise Unavailable(f'process "{address}" does not answer: {error.reason}') from error
    except OSError as error:
        raise Unavailable(f'process "{address}" does not answer: {error}') from error
    families = text_string_to_metric_families(text)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def health(address: str, limit_s: float = 10.0) -> str:
    """Return what the process at `host:port` says is wrong with it, or nothing.

    Raises `Unavailable` if it does not answer, or nobody of ours does.
    """
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=limit_s):
            return ""
    except urllib.error.HTTPError as error:
        if error.code == _UNWELL:
            return error.read().decode(errors="replace").strip() or str(error.reason)
        raise Unavailable(f'process "{address}" is none of ours: its /healthz is {error.code}') from error
    except urllib.error.URLError as error:
        raise Unavailable(f'process "{address}" does not answer: {error.reason}') from error
    except (OSError, HTTPException) as error:
        raise Unavailable(f'process "{address}" does not answer: {error or type(error).__name__}') from error


def knock(address: str, limit_s: float = 10.0) -> str:
    """Return nothing if anybody listens at `host:port`, whatever is spoken there; raises `Unavailable` if not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=limit_s).close()
    except (OSError, ValueError, OverflowError) as error:
        raise Unavailable(f'process "{address}" does not answer: {error}') from error
    return ""


def added(scrapes: Iterable[Samples]) -> Samples:
    """Return the metrics of processes that do one thing together: each is the sum of theirs.

    >>> added([{("rows", ()): 5.0}, {("rows", ()): 7.0, ("bytes", ()): 2.0}])
    {('rows', ()): 12.0, ('bytes', ()): 2.0}
    """
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for samples in scrapes:
        for key, value in samples.items():
            found[key] = found.get(key, 0.0) + value
    return found


def risen(before: Samples, now: Samples) -> Samples:
    """Return by how much each counter has risen between two scrapes; one that fell has begun anew, at 0.

    >>> risen({("rows", ()): 5.0, ("bytes", ()): 9.0}, {("rows", ()): 7.0, ("bytes", ()): 2.0})
    {('rows', ()): 2.0, ('bytes', ()): 2.0}
    """
    return {key: value - was if (was := before.get(key, 0.0)) <= value else value for key, value in now.items()}


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return a metric's value, summed up over all labels that are not given."""
    wanted = set(labels.items())
    return sum(value for (found, pairs), value in samples.items() if found == name and wanted <= set(pairs))


def quantile(samples: Samples, name: str, share: float, **labels: str) -> float | None:
    """Return the bound of the bucket of a histogram that holds a share of its values; None if it has none."""
    buckets = {float(bound): count for bound, count in by_label(samples, f"{name}_bucket", "le", **labels).items()}
    count = buckets.get(math.inf, 0)
    return next((bound for bound in sorted(buckets) if buckets[bound] >= share * count), None) if count else None


def by_label(samples: Samples, name: str, label: str, **labels: str) -> dict[str, float]:
    """Return a metric's values by one label, summed up over the others that are not given."""
    wanted, found = set(labels.items()), dict[str, float]()
    for (own, pairs), value in samples.items():
        if own == name and wanted <= set(pairs):
            key = dict(pairs)[label]
            found[key] = found.get(key, 0.0) + value
    return found
