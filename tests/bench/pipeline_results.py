"""What is measured of whole pipelines, and the page that is made of what became of it.

The lines of JSON that `pipeline.py` records have a `kind`: `run`, or the name of what was measured; `report` reads all of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline_limits import ALONE, PARTS
from recording import head
from serving_results import figure, spread

Line = Mapping[str, Any]

KINDS = {
    "end-to-end": "From Kafka to both stores",
    "limits": "What each part can do alone",
    "growth": "As it grows",
    "freshness": "From produced to readable",
    "start": "Starting",
    "replay": "Replay of a file",
}
"""What can be measured, in the order of the page."""


def report(lines: Iterable[Line]) -> str:
    """Return the page that recorded lines make."""
    by: dict[str, list[Line]] = {"run": [], **{kind: [] for kind in KINDS}}
    for line in lines:
        by[line["kind"]].append(line)
    parts = head("The pipeline, measured", "pipeline", by["run"])
    parts += [
        "",
        "Kafka, Redis, the materializer and the load share all cores there are. Medians, with the least and the greatest.",
    ]
    tables: dict[str, Callable[[], list[str]]] = {
        "end-to-end": lambda: end_to_end(by["end-to-end"]),
        "limits": lambda: limits(by["limits"], by["end-to-end"]),
        "growth": lambda: growth(by["growth"]),
        "freshness": lambda: freshness(by["freshness"]),
        "start": lambda: starts(by["start"]),
        "replay": lambda: replays(by["replay"]),
    }
    for kind, title in KINDS.items():
        if by[kind]:
            parts += ["", f"## {title}", "", f"`./scripts/bench pipeline --only {kind}`", "", *tables[kind]()]
    return "\n".join(parts) + "\n"


def per_million(line: Line, name: str) -> float:
    """Return what a million events cost, what the start cost apart."""
    begun = line["start_cpu_s"] if name == "cpu_s" else 0.0
    begun = 0.0 if math.isnan(begun) else begun
    return float((line[name] - begun) / line["events_count"] * 1e6)


COLUMNS: Mapping[str, Callable[[Line], float]] = {
    "events/s": lambda line: line["events_per_s"],
    "CPU s a million": lambda line: per_million(line, "cpu_s"),
    "Redis CPU s a million": lambda line: per_million(line, "redis_cpu_s"),
    "peak MB": lambda line: line["peak_mb"],
    "first row s": lambda line: line["first_row_s"],
    "whole s": lambda line: line["whole_s"],
    "rows an event": lambda line: line["rows_count"] / line["events_count"],
    "online rows an event": lambda line: line["online_count"] / line["events_count"],
}
"""What is told of a run over a backlog."""


def table(groups: Mapping[tuple[str, ...], Sequence[Line]], heads: Sequence[str], columns: Iterable[str]) -> list[str]:
    """Return one line for each group of lines, which the words of its key begin."""
    names = list(columns)
    made = [f"| {' | '.join([*heads, 'n', *names])} |", f"|{' --- |' * len(heads)}{' ---: |' * (1 + len(names))}"]
    for key, own in groups.items():
        cells = [spread([COLUMNS[name](line) for line in own]) for name in names]
        made.append(f"| {' | '.join([*key, str(len(own)), *cells])} |")
    return made


def grouped(lines: Iterable[Line], *names: str) -> dict[tuple[str, ...], list[Line]]:
    """Return lines by what some of their fields say.

    >>> grouped([{"a": 1, "b": 2}, {"a": 1, "b": 3}], "a")
    {('1',): [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}]}
    """
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        key = tuple(f"{line[name]:,}" if isinstance(line[name], int) else str(line[name]) for name in names)
        found.setdefault(key, []).append(line)
    return found


def ratios(lines: Sequence[Line], of: Callable[[Line], float], field: str, one: str, other: str) -> list[float]:
    """Return a value where a field says one thing by that where it says another, of each repeat and number of events.

    >>> ratios([{"d": "a", "repeat": 0, "events_count": 5, "x": 6.0}, {"d": "b", "repeat": 0, "events_count": 5, "x": 3.0}],
    ...        lambda line: line["x"], "d", "a", "b")
    [2.0]
    """
    by: dict[Any, dict[tuple[int, int], float]] = {one: {}, other: {}}
    for line in lines:
        if line[field] in by:
            by[line[field]][line["repeat"], line["events_count"]] = of(line)
    return [by[one][turn] / by[other][turn] for turn in sorted(by[one].keys() & by[other].keys())]


def end_to_end(lines: Sequence[Line]) -> list[str]:
    """Return the table of runs over a backlog, and what rows by time alone cost."""
    made = table(grouped(lines, "decay", "events_count"), ["decay", "events"], COLUMNS)
    for title in ("events/s", "CPU s a million", "peak MB"):
        found = ratios(lines, COLUMNS[title], "decay", "on", "off")
        if found:
            made += [*([""] if title == "events/s" else []), f"- {title}, decay on by decay off: {spread(found)}"]
    told = (
        "Events/s: between the first commit that was seen and the last, without the start. CPU: user and system, of the"
        " process and its children, from the first row on. Peak: VmHWM. First row: from the start of the process until"
        " Redis has counted a write. Whole: the process, from its start to its end."
    )
    return [told, "", *made]


def limits(lines: Sequence[Line], whole: Sequence[Line]) -> list[str]:
    """Return the table of parts, and what the whole reaches of them."""
    told = (
        "Each part alone, on the same events, in one process with nothing beside it, with the functions that the flow"
        f" calls; about {figure(lines[-1]['turn_events'])} events at once and {figure(lines[-1]['commit_events'])} a parquet part, as the flow"
        " did. Rows are told as the events they came of. CPU is that of the process, without Kafka's; of Redis alone, Redis's."
    )
    made = [told, "", "| part | events/s | CPU µs an event | share of the sum of CPU |", "| --- | ---: | ---: | ---: |"]
    cpus = {name: [1e6 * one["parts"][name]["cpu_s"] / one["events_count"] for one in lines] for name in PARTS}
    sums = [sum(cpus[name][place] for name in PARTS if name not in ALONE) for place in range(len(lines))]
    for name, title in PARTS.items():
        rates = [one["events_count"] / one["parts"][name]["seconds"] for one in lines]
        shares = [100 * cpu / total for cpu, total in zip(cpus[name], sums, strict=True)]
        share = "(part of another)" if name in ALONE else f"{figure(sorted(shares)[len(shares) // 2])} %"
        made.append(f"| {title} | {spread(rates)} | {spread(cpus[name])} | {share} |")
    slowest = [min(one["events_count"] / one["parts"][name]["seconds"] for name in PARTS) for one in lines]
    series = [
        one["events_count"] / sum(part["seconds"] for name, part in one["parts"].items() if name not in ALONE)
        for one in lines
    ]
    made += [
        "",
        f"- the slowest part: {spread(slowest)} events/s; one after another, 1/Σ(1/limit): {spread(series)} events/s",
    ]
    made.append(
        f"- CPU of all parts: {spread(sums)} µs an event, so {spread([1e6 / total for total in sums])} events/s a core"
    )
    for decay, own in grouped(whole, "decay").items():
        if decay == (lines[-1]["decay"],):
            by = {line["repeat"]: line for line in own}
            pairs = [(by[one["repeat"]], place) for place, one in enumerate(lines) if one["repeat"] in by]
            if pairs:
                of_slowest = [line["events_per_s"] / slowest[place] for line, place in pairs]
                of_series = [line["events_per_s"] / series[place] for line, place in pairs]
                of_cpu = [per_million(line, "cpu_s") / sums[place] for line, place in pairs]
                made.append(
                    f"- the whole, decay {decay[0]}: {spread(of_slowest)} of the slowest part,"
                    f" {spread(of_series)} of 1/Σ(1/limit); its CPU is {spread(of_cpu)} times that of all parts"
                )
    return made


def growth(lines: Sequence[Line]) -> list[str]:
    """Return the table of what grows, one thing at a time."""
    columns = [name for name in COLUMNS if name not in {"whole s", "online rows an event"}]
    return table(grouped(lines, "axis", "value", "events_count"), ["what", "", "events"], columns)


def freshness(lines: Sequence[Line]) -> list[str]:
    """Return the table of how soon rows can be read."""
    told = (
        "From the instant an event is given to the producer, or a row by time alone is due, until Redis answers with it, of"
        " entities that are polled all the time. Corrections: events late by a part of the allowed lateness."
    )
    made = [told, "", "| load | events/s | kind | n | p50 ms | p99 ms | max ms |", "| --- |" + " ---: |" * 6]
    made[-1] = "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
    for (share, kind), own in grouped(lines, "share", "of").items():
        cells = [spread([line[name] for line in own]) for name in ("p50_ms", "p99_ms", "max_ms")]
        count, rate = sum(line["count"] for line in own), spread([line["rate"] for line in own])
        made.append(f"| {float(share):.0%} | {rate} | {kind} | {count:,} | {' | '.join(cells)} |")
    return made


def starts(lines: Sequence[Line]) -> list[str]:
    """Return the table of how long it takes to begin."""
    told = (
        "From the start of the process until Redis has counted its first write; the events that make it are in Kafka."
    )
    made = [
        told,
        "",
        "| entities to restore | n | first row s | CPU s until then | peak MB |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for (entities,), own in grouped(lines, "restored_count").items():
        cells = [spread([line[name] for line in own]) for name in ("first_row_s", "start_cpu_s", "peak_mb")]
        made.append(f"| {entities} | {len(own)} | {' | '.join(cells)} |")
    return made


def replays(lines: Sequence[Line]) -> list[str]:
    """Return the table of replays."""
    told = (
        "`freshet replay` of the archived events of such a run, eight features, one worker. A core: by CPU"
        " seconds, user and system. The start is left out: what a replay of one event takes."
    )
    made = [
        told,
        "",
        "| file | events | n | rows/s | events/s | rows/s a core | CPU s a million events | peak MB |",
    ]
    made.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for key, own in grouped(lines, "file", "events_count").items():
        cells = [
            spread([line["rows_count"] / line["seconds"] for line in own]),
            spread([line["events_count"] / line["seconds"] for line in own]),
            spread([line["rows_count"] / line["cpu_s"] for line in own]),
            spread([1e6 * line["cpu_s"] / line["events_count"] for line in own]),
            spread([line["peak_mb"] for line in own]),
        ]
        made.append(f"| {' | '.join([*key, str(len(own)), *cells])} |")
    return made
