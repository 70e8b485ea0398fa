"""What the validator is measured on: a system on real parts, its validator, and edits that flow."""

import contextlib
import itertools
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from results import ANY, COLD, EFFECT_LIMIT_S, HOT, Case, is_localised

from freshet.flows import settings
from freshet.flows.edges.partitions import records
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.scrape import Samples, total
from freshet.schemas.finding import FINDINGS_TOPIC, Cause
from freshet.schemas.view import View
from freshet.scripts.embedded import FRESHET, Process, Sender, start
from freshet.scripts.faults import breaks
from freshet.scripts.faults.deeds import Choice
from freshet.scripts.faults.proxy import Proxy
from freshet.scripts.made_edits import edits

EVENTS_RATE, FIRST_EVENTS_COUNT, WARM_ROUNDS_COUNT = 100.0, 3000, 3
READY_LIMIT_S, LEAST_ROUNDS_COUNT = 600.0, 8
"""On a machine that has no time for rounds, nothing is missed before so many."""


def regimes(views: Sequence[View], events_count: int = 20_000) -> dict[str, frozenset[str] | None]:
    """Return which entities are hot, and which cold, by what is made of the first events."""
    made, hot, cold = list(itertools.islice(edits(0), events_count)), set[str](), set[str]()
    for view in views:
        counts = Counter(" / ".join(str(edit[name]) for name in view.entity_names) for edit in made)
        left = events_count / 2
        for entity, count in counts.most_common():
            (hot if left > 0 else cold).add(entity)
            left -= count
    return {HOT: frozenset(hot), COLD: frozenset(cold), ANY: None}


def declared(text: str, target: str, prefix: str = "") -> str:
    """Return a declaration with another freshness target, and only those features whose names begin in one way."""
    found = yaml.safe_load(text)
    found["servingRequirements"]["freshnessTarget"] = target
    found["featureDefinitions"] = [one for one in found["featureDefinitions"] if one["name"].startswith(prefix)]
    entity = prefix.rstrip("_")
    found["views"] = {
        name: one for name, one in found["views"].items() if name.rpartition("_by_")[2].startswith(entity)
    }
    return yaml.safe_dump(found, sort_keys=False, width=1000)


@dataclass
class Traffic:
    """Made edits, as many a second as `rate` says by now, after some at once. `only` one editor, some long after their time."""

    rate: float = EVENTS_RATE
    at_once_count: int = FIRST_EVENTS_COUNT
    only: str | None = None
    late_share: float = 0.0

    def timed(self, faults: breaks.Faults) -> Iterator[tuple[float, dict[str, Any]]]:
        due, chance = time.monotonic(), random.Random(1)
        for made in edits(2026):
            if self.only is not None:
                made |= {"user": self.only}
            if chance.random() < self.late_share:
                late = timedelta(seconds=120 * chance.random())
                made |= {"time": (datetime.now(UTC) - late).isoformat(timespec="milliseconds")}
            wait_s = 0.0
            if self.at_once_count > 0:
                self.at_once_count -= 1
                due = time.monotonic()
            else:
                due += 1 / self.rate
                wait_s = due - time.monotonic()
            yield wait_s, faults.sent(made)


class Rig:
    """A system and its validator, whose own way to the online store leads through a proxy that counts.

    All of it ends with `parts`.
    """

    def __init__(self, parts: contextlib.ExitStack, target: str, prefix: str = "") -> None:
        own = settings.read(os.environ)
        stack = start(parts, own, breakable=True, declared_as=lambda text: declared(text, target, prefix))
        assert stack.faults is not None, "it is breakable"
        self.faults, self.workspace, self.materializer = stack.faults, stack.workspace, stack.materializer
        self.views = self.workspace.pipeline.views
        self.reading = parts.enter_context(Proxy(breaks.port_of(self.workspace)))
        self.materializer.wait_until_ready()
        self.traffic, [contract] = Traffic(), self.workspace.contracts.values()
        self.sender = Sender(self.workspace.kafka, contract, self.traffic.timed(self.faults))
        parts.callback(self.sender.end)
        self.sender.start()
        environment = {**stack.environment, "FRESHET_ONLINE_STORE": self.reading.url}
        root, command = self.workspace.project.root, (*FRESHET, "run", "validator")
        self.validator = Process("validator", command, environment, root)
        parts.callback(self.validator.end)
        self._entities = regimes(self.views)
        self._newest_offset, self._cases_count = -1, 0

    def wait_until_warm(self) -> None:
        """Wait until the validator has looked at everything a few times."""
        deadline = time.monotonic() + READY_LIMIT_S
        while True:
            samples = self.validator.samples()
            rounds = total(samples, "freshet_validator_round_duration_seconds_count")
            if rounds >= WARM_ROUNDS_COUNT and all(self.compared(samples).values()):
                return
            assert time.monotonic() < deadline, f"the validator compares nothing:\n{self.validator.said()}"
            self.check()
            time.sleep(0.5)

    def compared(self, samples: Samples) -> dict[str, float]:
        """Return how many rows of each view were found in both stores."""
        label = {view.name: view.features[0].name for view in self.views}
        name = "freshet_skew_compared_total"
        return {view: total(samples, name, feature_view=view, feature=feature) for view, feature in label.items()}

    def wait_for_commits(self, count: int) -> None:
        """Wait until so much more is committed."""
        ledger, deadline = LedgerFile(self.workspace.offline_root), time.monotonic() + READY_LIMIT_S
        begun = ledger.read()
        while (now := ledger.read()) is None or begun is None or now.epoch < begun.epoch + count:
            assert time.monotonic() < deadline, f"nothing is committed any more:\n{self.materializer.said()}"
            self.materializer.check()
            time.sleep(0.1)

    def check(self) -> None:
        """Raise what went wrong beside."""
        self.sender.check()
        self.materializer.check()
        self.validator.check()

    def news(self) -> list[tuple[float, dict[str, Any]]]:
        """Return the findings that opened since the last call, each with when Kafka had it."""
        found = []
        for poll in records(self.workspace.kafka, FINDINGS_TOPIC):
            for offset, at_ms, value in zip(poll.offsets.tolist(), poll.timestamps_ms, poll.values, strict=True):
                if value is not None and offset > self._newest_offset:
                    self._newest_offset = offset
                    found.append((int(at_ms) / 1000, json.loads(value)))
        return [(at, alarm) for at, alarm in found if alarm["status"] == "opened"]

    def spent(self) -> dict[str, float]:
        """Return what both processes have cost until now, and the validator's rounds: how many, and their seconds."""
        while not (samples := self.validator.samples()):
            self.check()
        name = "freshet_validator_round_duration_seconds"
        found = {"seconds": time.monotonic(), **{part: total(samples, f"{name}_{part}") for part in ("sum", "count")}}
        for process, proxy in ((self.validator, self.reading), (self.materializer, self.faults.proxy)):
            own = {"cpu_s": cpu_s(process.child.pid), **asdict(proxy.passed)}
            found |= {f"{process.name}_{name}": value for name, value in own.items()}
        return found

    def run(self, case: Case) -> dict[str, Any]:
        """Break it, wait for what is found, and return what became of it."""
        self._cases_count += 1
        choice, before = Choice(case.rate, case.seed, self._entities[case.entities]), self.spent()
        self.faults.begin(Cause(case.cause), choice, f"case-{self._cases_count}")
        opened = self._opened(case, before["count"])
        spent = {name: round(value - before[name], 3) for name, value in self.spent().items()}
        account = self.faults.account()
        since = account.first_effective_at
        found = [] if since is None else [(at, alarm) for at, alarm in opened if at >= since]
        told = [*{alarm["check"]: alarm for _, alarm in found if alarm["at"] == found[0][1]["at"]}.values()]
        return {
            **asdict(case),
            "affected_count": account.affected_count,
            "found_s": None if since is None or not found else round(found[0][0] - since, 3),
            "causes": [alarm["cause"] for alarm in told],
            "checks": [alarm["check"] for alarm in told],
            "is_localised": is_localised(told[0], account) if told else None,
            "false": [alarm["check"] for at, alarm in opened if since is None or at < since],
            "load": round(os.getloadavg()[0], 1),
            "spent": spent,
        }

    def _opened(self, case: Case, rounds_count: float) -> list[tuple[float, dict[str, Any]]]:
        """Return what opened until the first finding after the fault's first effect, or the limit."""
        begun, opened, since = time.time(), self.news(), None
        while True:
            time.sleep(1.0)
            self.check()
            opened += self.news()
            since = since or self.faults.account().first_effective_at
            if since is None:
                if time.time() - begun > EFFECT_LIMIT_S:
                    return opened
            elif any(at >= since for at, _ in opened):
                time.sleep(1.0)  # the rest of the same round
                return opened + self.news()
            elif time.time() - since > case.limit_s and self.spent()["count"] >= rounds_count + LEAST_ROUNDS_COUNT:
                return opened


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process; not a number where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
