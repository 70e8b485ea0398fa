"""What is measured of serving: cases, the goals, and the page that is made of what became of them.

The lines of JSON that `serving.py` records are `kind` run, nothing or case; `report` reads all of them.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recording import head, in_turn

SYSTEMS = {
    "freshet": "`freshet run server`",
    "feast-tuned": "`feast serve`, tuned",
    "feast": "`feast serve`",
    "sdk": "Feast SDK, in process",
}
OURS, TUNED, DEFAULT = "freshet", "feast-tuned", "feast"
P99_MS, PUSHING_P99_MS, PER_CORE_RATIO = 1.7, 3.0, 10.0
"""The goals: for one entity and ten features, the first without and the second with a pipeline that pushes."""
_LEAST_BEYOND_COUNT = 2
"""A percentile is told if so many requests lie beyond it."""


@dataclass(frozen=True)
class Case:
    """What is asked: of how many entities, how many features, on how many connections."""

    entities: int
    features: int
    connections: int

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Case":
        return cls(line["entities"], line["features"], line["connections"])


def cases_of(entities: Sequence[int], features: Sequence[int], connections: Sequence[int]) -> list[Case]:
    """Return all cases."""
    return [Case(*each) for each in itertools.product(entities, features, connections)]


def turns(systems: Sequence[str], cases: Sequence[Case], repeat_count: int) -> Iterator[tuple[int, Case, str]]:
    """Give who is measured when: all systems of a case one after another, each repeat beginning with the next one.

    >>> [system for _, _, system in turns(["a", "b"], [Case(1, 10, 1)], 2)]
    ['a', 'b', 'b', 'a']
    """
    for repeat in range(repeat_count):
        for case in cases:
            for system in in_turn(systems, repeat):
                yield repeat, case, system


# --- the page ---------------------------------------------------------------------------------------------------------


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return the page that recorded lines make."""
    kinds: dict[str, list[dict[str, Any]]] = {"run": [], "nothing": [], "case": []}
    for line in lines:
        kinds[line["kind"]].append(line)
    parts = head("Serving, measured", "serving", kinds["run"])
    parts += ["", "No process is bound to a core: the server, Redis, the load and the writer share all there are.", ""]
    parts += [*(own_cost(line) for line in kinds["nothing"])]
    quiet, pushed = ([line for line in kinds["case"] if line["is_pushed"] == which] for which in (False, True))
    if kinds["case"]:
        parts += ["", "## Goals", "", *goals(quiet, pushed), "", *troubles(kinds["case"])]
    if quiet:
        parts += ["", "## While nothing else goes on", "", *table(quiet)]
    if pushed:
        parts += ["", "## While the pipeline pushes", "", *table(pushed)]
    return "\n".join(parts) + "\n"


def own_cost(line: dict[str, Any]) -> str:
    """Return what the load costs and adds itself."""
    full, half = line["saturated"], line["half"]
    return (
        f"- The load alone, {line['connections']} connections, a server that answers at once with nothing:"
        f" {full['per_s']:,.0f} requests/s, {1e6 * full['own_cpu_s'] / full['count']:.0f} µs CPU a request;"
        f" at half of that p50 {figure(half['p50_ms'])} ms, p99 {figure(half['p99_ms'])} ms,"
        f" of which it was late itself by {figure(half['late_p99_ms'])} ms (p99)."
    )


def per_core(line: dict[str, Any]) -> float:
    """Return the requests per second and core of a saturated server: one by its CPU seconds a request."""
    full = line["saturated"]
    return float(full["count"] / full["cpu_s"]) if full["cpu_s"] else float("nan")


def percentile(line: dict[str, Any], share: float) -> float | None:
    """Return a percentile at half load, None where there were too few requests to tell it."""
    half = line["half"]
    beyond = half["count"] * (1 - share / 100)
    found: float | None = half[f"p{share:g}_ms"]
    return found if beyond >= _LEAST_BEYOND_COUNT else None


def figure(value: float | None) -> str:
    """Write a number with three digits that count.

    >>> figure(0.01234), figure(1.2345), figure(12.345), figure(1234.5), figure(None)
    ('0.012', '1.23', '12.3', '1,234', '-')
    """
    if value is None or value != value:  # noqa: PLR0124  # not a number: where there is no /proc
        return "-"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def spread(values: Sequence[float | None]) -> str:
    """Write a median and, where they differ, the least and the greatest.

    >>> spread([3.0, 1.0, 2.0]), spread([1.0, 1.0]), spread([1.0, None])
    ('2.00 (1.00-3.00)', '1.00', '-')
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    median, least, greatest = (figure(of(known)) for of in (statistics.median, min, max))
    return median if least == greatest else f"{median} ({least}-{greatest})"


def ratios(lines: Sequence[dict[str, Any]], system: str, other: str) -> list[float]:
    """Return the requests a core of one system by those of another, of each repeat: what was measured side by side."""
    by = {
        name: {line["repeat"]: per_core(line) for line in lines if line["system"] == name} for name in (system, other)
    }
    return [by[system][repeat] / by[other][repeat] for repeat in sorted(by[system].keys() & by[other].keys())]


def grouped(lines: Sequence[dict[str, Any]]) -> dict[Case, list[dict[str, Any]]]:
    """Return the lines of each case."""
    found: dict[Case, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(Case.of(line), []).append(line)
    return found


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each case and system: medians of the repeats, with the least and the greatest."""
    head = "| entities | features | connections | system | requests/s | p50 ms | p99 ms | p99.9 ms |"
    head += " CPU µs a request | Redis µs | requests/s a core | × tuned |"
    made = [head, "| ---: | ---: | ---: | --- |" + " ---: |" * 8]
    for case, of_case in sorted(
        grouped(lines).items(), key=lambda each: (each[0].entities, each[0].features, each[0].connections)
    ):
        for system, title in SYSTEMS.items():
            own = [line for line in of_case if line["system"] == system]
            if not own:
                continue

            def told(value: Callable[[dict[str, Any]], float | None], own: Sequence[dict[str, Any]] = own) -> str:
                return spread([value(line) for line in own])

            cells = [
                *map(str, (case.entities, case.features, case.connections)),
                title,
                told(lambda line: line["saturated"]["per_s"]),
                *(told(lambda line, share=share: percentile(line, share)) for share in (50.0, 99.0, 99.9)),
                told(lambda line: 1e6 / per_core(line)),
                told(lambda line: 1e6 * line["saturated"]["redis_cpu_s"] / line["saturated"]["count"]),
                told(per_core),
                spread(ratios(of_case, system, TUNED)),
            ]
            made.append(f"| {' | '.join(cells)} |")
    return made


def goals(quiet: Sequence[dict[str, Any]], pushed: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is promised, and how it went."""
    made = []
    for lines, limit_ms, when in (
        (quiet, P99_MS, "at half load"),
        (pushed, PUSHING_P99_MS, "at half load, while the pipeline pushes"),
    ):
        for case, of_case in grouped(lines).items():
            own = [percentile(line, 99.0) for line in of_case if line["system"] == OURS]
            if own and (case.entities, case.features) == (1, 10):
                known = [value for value in own if value is not None]
                verdict = "too few requests" if len(known) < len(own) else kept(statistics.median(known) <= limit_ms)
                what = f"p99 of one entity and ten features, {case.connections} connections, {when}"
                made.append(f"- {what}: {spread(own)} ms; to be at most {limit_ms} ms: {verdict}")
    for other in (TUNED, DEFAULT):
        found = [statistics.median(own) for lines in grouped(quiet).values() if (own := ratios(lines, OURS, other))]
        if found:
            enough = sum(ratio >= PER_CORE_RATIO for ratio in found)
            made.append(
                f"- requests a second and core by those of {SYSTEMS[other]}: {figure(min(found))} to {figure(max(found))} times;"
                f" at least {PER_CORE_RATIO:g} times in {enough} of {len(found)} cases: {kept(enough == len(found))}"
            )
    for system, title in SYSTEMS.items():
        own_lines = [line for line in pushed if line["system"] == system]
        if own_lines:
            halves = [part for line in own_lines for part in (line["saturated"], line["half"])]
            mixed, count = (sum(half[name] for half in halves) for name in ("mixed_count", "count"))
            rows = spread([line["rows_per_s"] for line in own_lines])
            made.append(
                f"- answers of {title} that mixed two versions of an entity's view: {mixed} of {count:,},"
                f" at {rows} rows/s pushed; to be 0: {kept(not mixed)}"
            )
    return made


def kept(holds: bool) -> str:  # noqa: FBT001  # of this file alone
    """Say whether a goal is reached."""
    return "**yes**" if holds else "**no**"


def troubles(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what went wrong beside, and how late the load itself was: what it adds to a latency."""
    made = []
    for system, title in SYSTEMS.items():
        parts = [part for line in lines if line["system"] == system for part in (line["saturated"], line["half"])]
        if not parts:
            continue
        counts = {name: sum(part[f"{name}_count"] for part in parts) for name in ("errors", "broken", "reopened")}
        lates = [line["half"]["late_p99_ms"] for line in lines if line["system"] == system]
        first = next((part["first_error"] for part in parts if part["first_error"]), "")
        made.append(
            f"- {title}: {sum(part['count'] for part in parts):,} answers, {counts['errors']} other than 200"
            f"{f' ({first!r})' if first else ''}, {counts['broken']} connections broken before their answer and asked again,"
            f" {counts['reopened']} closed after it; the load was late itself by {spread(lates)} ms (p99)"
        )
    return made
