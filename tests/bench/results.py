"""What is measured of the validator: cases, and the page that is made of what became of them.

The lines of JSON that `validator.py` records are `kind` run, case, load or clean; `report` reads all of them.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from freshet.flows.steps.statistics import lower_bound
from freshet.schemas.finding import Cause
from freshet.scripts.faults import breaks
from freshet.scripts.faults.deeds import Account

HOT, COLD, ANY = "hot", "cold", "any"
EFFECT_LIMIT_S = 240.0
"""How long a fault is waited for to have any effect."""
PROMISED = (("all of a kind", 1.0, 30), ("1 % of a kind", 0.01, 120))
"""What is struck, its rate, and within how many seconds that is to be found."""


@dataclass(frozen=True)
class Case:
    cause: str
    rate: float
    entities: str
    seed: int

    @property
    def limit_s(self) -> float:
        """How long after its first effect a fault must be found."""
        return 120.0 if self.rate >= 0.01 else 300.0


def cases_of(causes: Sequence[str], rates: Sequence[float], entities: Sequence[str], seeds: int) -> list[Case]:
    """Return all cases; a cause that befalls no single entity, or no share, is there once for what it knows no more of."""
    found = [
        Case(cause, *(rate, which) if cause in breaks.OF_ENTITIES else (rate, ANY), seed)
        if cause != Cause.STALE_ONLINE
        else Case(cause, 1.0, ANY, seed)
        for seed, cause, rate, which in itertools.product(range(1, seeds + 1), causes, rates, entities)
    ]
    return list(dict.fromkeys(found))


def interval(count: int, of: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return the exact bounds (Clopper-Pearson) of a share."""
    return lower_bound(count, of, alpha / 2), 1 - lower_bound(of - count, of, alpha / 2)


def is_localised(alarm: dict[str, Any], account: Account) -> bool:
    """Say whether a finding speaks of what was struck, and of nothing else."""
    entities = {line["entity"] for line in alarm["evidence"] if line.get("entity") is not None}
    return (
        alarm["feature_view"] in account.views
        and (not account.features or set(alarm["features"]) <= set(account.features))
        and (not account.entities or entities <= set(account.entities))
    )


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return the page that recorded lines make."""
    kinds: dict[str, list[dict[str, Any]]] = {"run": [], "case": [], "load": [], "clean": []}
    for line in lines:
        kinds[line["kind"]].append(line)
    cases = kinds["case"]
    parts = ["# The validator, measured", "", "By `./scripts/bench validator`; its --help says what is measured.", ""]
    parts += [f"- {run['date']}, {run['host']}; {run['versions']}; {run['settings']}" for run in kinds["run"]]
    if cases:
        parts += ["", *table(cases), "", *summary(cases), "", *cost(cases)]
    if kinds["load"]:
        parts += ["", *loads(kinds["load"])]
    for line in kinds["clean"]:
        parts += ["", *silence(line)]
    return "\n".join(parts) + "\n"


def table(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each cause and rate."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["cause"], case["rate"]), []).append(case)
    head = (
        "| cause | rate | n | found (95 %) | p50 s | p95 s | max s | rounds | right cause | in its round | localised |"
    )
    lines = [head, "| --- |" + " ---: |" * 10]
    for (cause, rate), own in sorted(groups.items()):
        n = [case for case in own if case["affected_count"]]
        found = [case for case in n if case["found_s"] is not None]
        times = sorted(case["found_s"] for case in found)
        seconds = [f"{times[math.ceil(share * len(times)) - 1]:.1f}" if times else "-" for share in (0.5, 0.95, 1.0)]
        rounds = max((int(case["spent"]["count"]) for case in found), default="-")
        counts = (len(_right(found)), len(_among(found)), sum(case["is_localised"] for case in found))
        shares = [f"{count}/{len(found)}" for count in counts]
        cells = [cause, f"{rate * 100:g} %", str(len(n)), share_of(len(found), len(n)), *seconds, str(rounds), *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def share_of(count: int, of: int) -> str:
    """Write a share with its bounds."""
    if of == 0:
        return "-"
    low, high = interval(count, of)
    return f"{count}/{of} ({low:.0%}-{high:.0%})"


def _right(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for case in found if case["causes"][0] == case["cause"]]


def _among(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for case in found if case["cause"] in case["causes"]]


def summary(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is promised, and how it went."""
    n = [case for case in cases if case["affected_count"]]
    found = [case for case in n if case["found_s"] is not None]
    lines = []
    for name, rate, limit_s in PROMISED:
        own = [case for case in n if case["rate"] == rate]
        soon = [case for case in own if case["found_s"] is not None and case["found_s"] <= limit_s]
        lines.append(f"- {name} struck, found within {limit_s} s: {share_of(len(soon), len(own))}")
    lines.append(f"- the right cause first: {share_of(len(_right(found)), len(found))}")
    lines.append(f"- the right cause in the round that found it: {share_of(len(_among(found)), len(found))}")
    lines.append(f"- localised: {share_of(sum(case['is_localised'] for case in found), len(found))}")
    false = [check for case in cases for check in case["false"]]
    lines.append(f"- findings before a fault had an effect: {len(false)}{': ' if false else ''}{', '.join(false)}")
    lines.append(f"- cases in which a fault had no effect in {EFFECT_LIMIT_S:.0f} s: {len(cases) - len(n)}")
    return lines


def cost(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Return what both processes have cost while faults were looked for."""

    def sum_of(name: str) -> float:
        return math.fsum(case["spent"][name] for case in cases)

    seconds, load = sum_of("seconds"), statistics.median(case["load"] for case in cases)
    round_s = sum_of("sum") / max(1.0, sum_of("count"))
    lines = [f"Over {seconds:.0f} s of cases, a round took {round_s:.1f} s; median load average {load}.", ""]
    lines += ["| | CPU | Redis commands /s | kB/s asked | kB/s answered |", "| --- | ---: | ---: | ---: | ---: |"]
    for who in ("validator", "materializer"):
        amounts = [sum_of(f"{who}_{name}") / seconds for name in ("commands_count", "asked_bytes", "answered_bytes")]
        told = [f"{sum_of(f'{who}_cpu_s') / seconds:.1%}", f"{amounts[0]:.0f}"]
        lines.append("| " + " | ".join([who, *told, *(f"{amount / 1e3:.1f}" for amount in amounts[1:])]) + " |")
    return lines


def loads(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the validator costs beside what the pipeline writes, at different rates."""
    told = [
        "Nothing broken, a minute at each rate; shares are the validator's of the materializer's.",
        "",
        "| events /s | validator's CPU | materializer's | Redis commands /s | of its commands | asked, of kB written | read, of kB written |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        spent = line["spent"]
        cpu = [f"{spent[f'{who}_cpu_s'] / spent['seconds']:.0%}" for who in ("validator", "materializer")]
        names = ("commands_count", "asked_bytes")
        shares = [f"{spent[f'validator_{name}'] / max(1, spent[f'materializer_{name}']):.1%}" for name in names]
        answered = f"{spent['validator_answered_bytes'] / max(1, spent['materializer_asked_bytes']):.1%}"
        cells = [
            str(line["events_s"]),
            *cpu,
            f"{spent['validator_commands_count'] / spent['seconds']:.0f}",
            *shares,
            answered,
        ]
        told.append(f"| {' | '.join(cells)} |")
    return told


def silence(line: dict[str, Any]) -> list[str]:
    """Return how a clean run went."""
    count, false = line["judged_count"], line["false"]
    shocks = ", ".join(f"{name} {times}" for name, times in line["shocks"].items())
    bound = f"; with 95 % confidence, fewer than {3 / count:.1e} of them are wrong" if count and not false else ""
    failed = f"inconclusive {line['skew_inconclusive']:.0f}, validator errors {line['validator_errors']:.0f}"
    return [
        f"Nothing broken for {line['seconds']} s, {line['rounds_count']:.0f} rounds, {line['events_count']} events; {shocks};",
        f"the longest outage lasted {line['outage_s']} s; past two minutes, the declared target, it would rightly be found.",
        f"{count:,} judgements, {len(false)} false findings{bound}. Views × rounds: {failed}.",
        *(f"- {finding}" for finding in false),
    ]
