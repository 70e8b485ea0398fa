"""Everything at once on embedded parts: a broker, an online store, the materializer, a producer, and the checks.

Made edits flow for some seconds, or those of --events FILE with their times shifted to end now. One channel falls
silent at once: its values fall though no event comes. Then what Feast reads online is compared with the newest offline
rows, and all offline rows with DuckDB's own answer over the same events.

With --break CAUSE it is broken on purpose after those seconds, while edits go on, and the validator looks until it
finds that: exits 1 on a finding, 4 if there is none in two minutes.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from freshet.flows.edges import event_file, feast
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.scrape import Samples, quantile, total
from freshet.flows.edges.store_config import store_config
from freshet.flows.live_validator import open_observer
from freshet.flows.settings import Settings
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.oracle import compare, union_of
from freshet.flows.validator import EXIT_CODES, exit_code, judged
from freshet.flows.watch import Sampling
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Unavailable, listed
from freshet.schemas.event import archive_name
from freshet.schemas.finding import Alarm, Cause, Outcome, Status, Verdict, worst
from freshet.schemas.view import View
from freshet.scripts import check
from freshet.scripts.cli import wrong_use
from freshet.scripts.embedded import WAIT_LIMIT_S, Sender, Stack, start
from freshet.scripts.faults import breaks
from freshet.scripts.faults.deeds import Account, Choice
from freshet.scripts.made_edits import edits, user

_CLOCK = "freshet_clock_timestamp_seconds"
_STREAM = "wiki_edits"
_SEED = 2015
_QUIET = "#quiet.wikipedia"
_QUIET_AGE = timedelta(seconds=57)
_ROUND_S, _FIND_LIMIT_S = 2.0, 120.0
_SHARE = 0.5


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--seconds", type=float, default=15, help="how long made edits flow (15)")
    words.add_argument("--rate", type=float, metavar="N", help="made edits a second (400; with --break, 100)")
    words.add_argument("--events", metavar="FILE", help="send these events instead, shifted to end now")
    words.add_argument(
        "--speed", type=float, metavar="N", help="N times as fast as they happened; all at once if not given"
    )
    words.add_argument("--break", dest="cause", metavar="CAUSE", help=f"break it: {', '.join(breaks.CAUSES)}")
    words.add_argument("--keep", action="store_true", help="leave everything running, and say how to look")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Run the demo; exits 0 if nothing disagrees, and as its description says if it is to break."""
    if words.rate is None:
        words.rate = 400 if words.cause is None else 100  # the validator needs a core of its own
    for name in ("seconds", "rate", "speed"):
        if getattr(words, name) is not None and getattr(words, name) <= 0:
            raise wrong_use(f"--{name}", f"is {getattr(words, name)}", "write a number above 0")
    if words.cause is not None:
        return _break(words, settings)
    with contextlib.ExitStack() as parts:
        stack = _start(parts, settings)
        stack.materializer.wait_until_ready()
        sender = _sender(stack, words)
        sender.start()
        _show(stack, sender)
        sender.join()
        sender.check()
        if words.events is None:
            _show_decay(stack)
        if words.keep:
            _keep(stack)
        clocks = _clocks_us(stack.materializer.samples())
        child = stack.materializer.child
        child.send_signal(signal.SIGTERM)
        if child.wait(WAIT_LIMIT_S) != 0:
            stack.materializer.check()
        return _summary(stack.workspace, clocks)


def _start(parts: contextlib.ExitStack, settings: Settings, *, breakable: bool = False) -> Stack:
    """Start everything, and say where it is."""
    stack = start(parts, settings, breakable=breakable)
    own, pipeline = stack.workspace.settings, stack.workspace.pipeline
    metrics = f"http://{stack.materializer.metrics}/metrics"
    print(f"broker {own.brokers}, online store {own.online_store}, metrics {metrics}")
    print(f"project {pipeline.project}: {len(pipeline.views)} feature views, declared in features.yaml")
    return stack


def _clocks_us(samples: Samples) -> dict[str, int]:
    """Return up to when each view's rows follow the time."""
    found = ((dict(pairs), value) for (name, pairs), value in samples.items() if name == _CLOCK)
    return {pairs["feature_view"]: int(value * 10**6) for pairs, value in found}


def _sender(stack: Stack, words: argparse.Namespace) -> Sender:
    """Return who publishes the demo's events."""
    return Sender(stack.workspace.kafka, stack.workspace.contracts[_STREAM], _timed(stack, words))


def _timed(stack: Stack, words: argparse.Namespace) -> Iterator[tuple[float, Any]]:
    """Give each event and how long to wait for its turn."""
    started = time.monotonic()
    if words.events is None:
        count = max(2, int(words.seconds * words.rate)) if words.cause is None else None
        for number, made in enumerate(itertools.islice(edits(_SEED), count)):
            if number < 2:
                made |= {"channel": _QUIET, "time": (datetime.now(UTC) - _QUIET_AGE).isoformat()}
            event = made if stack.faults is None else stack.faults.sent(made)
            yield started + number / words.rate - time.monotonic(), event
        return
    field = stack.workspace.contracts[_STREAM].stream.event_time
    events = [json.loads(line) for _, line in event_file.lines(words.events)]
    times = [datetime.fromisoformat(event[field]) for event in events]
    if not events:
        raise wrong_use("--events", "names a file without events", "give one event a line")
    first, last, speed = min(times), max(times), words.speed
    shift = datetime.now(UTC) + (timedelta(0) if speed is None else (last - first) / speed) - last
    for event, at in zip(events, times, strict=True):
        event[field] = (at + shift).isoformat()
        turn = started + (0 if speed is None else (at - first).total_seconds() / speed)
        yield turn - time.monotonic(), json.dumps(event)


def _show(stack: Stack, sender: Sender) -> None:
    """Print a line a second until everything that was sent is durable."""
    view = stack.workspace.pipeline.views[0]
    online = OnlineStore(stack.workspace.online_url, stack.workspace.pipeline.project, stack.workspace.pipeline.views)
    watched: tuple[Any, ...] | None = (user(0),)
    before, deadline = 0.0, time.monotonic() + WAIT_LIMIT_S
    print("     events/s   events     rows online   lag   freshness p50   p99   one entity's features, changing")
    for second in itertools.count(1):
        stack.materializer.ended_within(1.0)
        samples = stack.materializer.samples()
        taken = total(samples, "freshet_events_total")
        rows = total(samples, "freshet_rows_total", store="online")
        lag = total(samples, "kafka_consumergroup_lag_sum")
        if watched is None or (stored := online.read(view, [watched])[0]) is None:
            found = online.sample(view, 1, _SEED)
            watched, stored = (found[0], online.read(view, found)[0]) if found else (None, None)
        if taken > before or second % 5 == 0:
            features = (
                ""
                if stored is None
                else f"{stored.entity[0]}: "
                + ", ".join(f"{name}={value}" for name, value in list(stored.features.items())[:3])
            )
            p50, p99 = (_quantile(samples, share) for share in (0.5, 0.99))
            counts = f"{second:3d}s {taken - before:8.0f} {taken:8.0f} {rows:15.0f} {lag:5.0f}"
            print(f"{counts} {p50:>15} {p99:>5}   {features}", flush=True)
        if taken > before or sender.is_alive():
            deadline = time.monotonic() + WAIT_LIMIT_S
        before = taken
        if not sender.is_alive() and taken >= sender.sent_count and lag == 0:
            return
        if stack.materializer.child.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(
                f"the materializer took {taken:.0f} of {sender.sent_count} events:\n{stack.materializer.said()}"
            )


def _show_decay(stack: Stack) -> None:
    """Wait until time alone has emptied the silent channel's last minute, and say so; raises `Unavailable` if never."""
    view = stack.workspace.pipeline.plan("wiki_edits_by_channel").view
    online = OnlineStore(stack.workspace.online_url, stack.workspace.pipeline.project, stack.workspace.pipeline.views)
    deadline = time.monotonic() + WAIT_LIMIT_S
    while True:
        [row] = online.read(view, [(_QUIET,)])
        if row is not None and row.features["chan_edits_1m"] == 0:
            break
        if stack.materializer.ended_within(0.1) or time.monotonic() > deadline:
            raise Unavailable(f"{_QUIET} still has {row and row.features}:\n{stack.materializer.said()}")
    at = f"{row.event_timestamp:%H:%M:%S}"
    print(f"\nno event since: {_QUIET} had 2 edits a minute, chan_edits_1m=0 at {at} by time alone")


def _quantile(samples: Samples, share: float) -> str:
    """Return the bucket's bound under which the share of all rows were readable."""
    found = quantile(samples, "freshet_freshness_seconds", share)
    return "-" if found is None else f"<{found * 1000:.0f}ms" if found < 1 else f"<{found:g}s"


def _summary(workspace: Workspace, clocks_us: Mapping[str, int]) -> int:
    """Compare everything with everything, and say what was compared; returns the exit code.

    `clocks_us` has, for each view, a time up to which all its ticks were made.
    """
    offline = workspace.offline()
    config = store_config(workspace.pipeline.project, workspace.online_url, workspace.project.registry)
    store = feast.open_store(config)
    differing = 0
    print("\nwhat Feast reads online, against the newest offline rows")
    for view in workspace.pipeline.views:
        newest = offline.newest(view)
        entities = list(zip(*(newest.column(name).to_pylist() for name in view.entity_names), strict=True))
        served = feast.read_online(store, view, entities)
        wrong = _differing(view, newest, served)
        differing += len(wrong)
        values_count = len(entities) * len(view.features)
        print(f"  {view.name}: {values_count} values of {len(entities)} entities, {len(wrong)} mismatches")
        for line in wrong[:3]:
            print(f"    {line}")
    print("all offline rows, against DuckDB's own answer to the declared SQL over the same events")
    for plan in workspace.pipeline.plans:
        events = union_of([offline.read(archive_name(stream)) for stream in plan.view.sources])
        answer = compare(plan, events, offline.final(plan.view), clocks_us[plan.view.name])
        differing += answer.differing_count
        counts = f"{answer.values_count} values of {answer.rows_count} rows"
        print(f"  {plan.view.name}: {counts}, {answer.differing_count} mismatches")
        for row in answer.differing[:3]:
            print(f"    {row}")
    print("freshet check")
    verdicts = check.check(workspace)
    check.report(verdicts)
    print(f"mismatches: {differing}")
    return 1 if differing else exit_code(verdicts)


def _differing(view: View, newest: pa.Table, served: Sequence[Any]) -> list[str]:
    """Say which entities Feast serves something else for."""
    wrong = []
    for row, online in zip(newest.to_pylist(), served, strict=True):
        expected = {feature.name: row[feature.name] for feature in view.features}
        if online is None or online.event_timestamp != row["event_timestamp"] or dict(online.features) != expected:
            wrong.append(f"{[row[name] for name in view.entity_names]}: offline {expected}, online {online}")
    return wrong


def _break(words: argparse.Namespace, settings: Settings) -> int:
    """Break what works, and have the validator look until it finds that."""
    for name in ("events", "speed", "keep"):
        if getattr(words, name):
            raise wrong_use("--break", f"is given with --{name}", "leave one of them out")
    if words.cause not in breaks.CAUSES:
        raise wrong_use("--break", f"is {words.cause!r}", f"write {listed(breaks.CAUSES)}")
    with contextlib.ExitStack() as parts:
        stack = _start(parts, settings, breakable=True)
        faults = stack.faults
        assert faults is not None, "it is breakable"
        validator, sender = _Validator(stack.workspace), _sender(stack, words)
        stack.materializer.wait_until_ready()
        parts.callback(sender.end)
        sender.start()
        print(f"made edits flow, {words.rate:g} a second, and the validator looks every {_ROUND_S:g} s")
        whole_until = time.monotonic() + words.seconds
        while time.monotonic() < whole_until or not validator.compared_count:
            _show_alarms("opened before anything was broken", validator.look())
            if time.monotonic() > whole_until + WAIT_LIMIT_S:
                raise Unavailable(f"the validator has compared nothing:\n{stack.materializer.said()}")
        print(f"{words.cause} from now on, made outside of the validator")
        faults.begin(Cause(words.cause), Choice(_SHARE, _SEED))
        deadline = time.monotonic() + _FIND_LIMIT_S
        while time.monotonic() < deadline:
            opened, now, account = validator.look(), time.time(), faults.account()
            sender.check()
            stack.materializer.check()
            if account.first_effective_at is None:
                _show_alarms("opened before the fault had an effect", opened)
                continue
            own = [alarm for alarm in opened if alarm.finding.cause == words.cause]
            _show_alarms("opened beside it", [alarm for alarm in opened if alarm not in own])
            if own:
                _show_alarms(f"found {now - account.first_effective_at:.1f} s after the fault's first effect", own)
                _show_account(account, own)
                return EXIT_CODES[Outcome.VIOLATED]
        print(f"not found within {_FIND_LIMIT_S:g} s; of {words.cause}:\n{stack.materializer.said()}")
        return EXIT_CODES[Outcome.VALIDATOR_ERROR]


class _Validator:
    """The validator's rounds, one after the other."""

    def __init__(self, workspace: Workspace) -> None:
        sampling = Sampling(grace=workspace.settings.epoch * 2 + timedelta(seconds=1), limit=timedelta(seconds=20))
        self._observer, self._judge, self._alarms = open_observer(workspace, sampling), Judge(), Alarms()
        self._target = workspace.source.declaration.servingRequirements.freshnessTarget
        self._number, self._turn = 0, time.monotonic()
        self.compared_count = 0

    def look(self) -> list[Alarm]:
        """Do a round when it is due, and say how it ended; returns the alarms that it opened."""
        time.sleep(max(0.0, self._turn - time.monotonic()))
        self._turn = time.monotonic() + _ROUND_S
        self._number += 1
        verdicts, news = list[Verdict](), list[Alarm]()
        looks = self._observer.look(self._number)
        for seen, found in zip(looks, judged(self._judge, looks, self._target), strict=True):
            verdict, more = self._alarms.heed(found, seen.at)
            verdicts.append(verdict)
            news += more
        count = sum(verdict.compared for verdict in verdicts)
        self.compared_count += count
        outcome = worst(verdict.outcome for verdict in verdicts)
        print(f"  round {self._number}: {count} rows compared, {outcome}", flush=True)
        return [alarm for alarm in news if alarm.status is Status.OPENED]


def _show_alarms(when: str, alarms: Sequence[Alarm]) -> None:
    for alarm in alarms:
        print(f"{when}: {alarm.finding.check}, {alarm.finding.count} lines")
        check.show(alarm.finding, lines_count=2)


def _show_account(account: Account, alarms: Sequence[Alarm]) -> None:
    """Say what the fault says that it did, and which of the entities in evidence are its own."""
    evidence = {line["entity"] for alarm in alarms for line in alarm.finding.evidence if "entity" in line}
    entities = f", {len(account.entities)} entities" if account.entities else ""
    views = ", ".join(account.views)
    print(f"the fault says that it did {account.cause} {account.affected_count} times{entities}: {views}")
    if evidence:
        print(f"of the {len(evidence)} entities in evidence it struck {len(evidence & set(account.entities))}")


def _keep(stack: Stack) -> None:
    """Wait for Ctrl-C, everything running."""
    root = stack.workspace.project.root
    settings = stack.workspace.settings
    print(f"\neverything keeps running; the project is in {root}. In another terminal:")
    print(f"  export FRESHET_PROJECT={root} FRESHET_BROKERS={settings.brokers}")
    print(f"  export FRESHET_ONLINE_STORE={settings.online_store} FRESHET_VALIDATOR_ADDRESS=off")
    print(f"  export FRESHET_MATERIALIZER_ADDRESS={stack.materializer.metrics}")
    command = os.path.relpath(Path(sys.executable).with_name("freshet"))
    print(f"  {command} status")
    print(f"  {command} produce FILE")
    print(f"  curl http://{stack.materializer.metrics}/metrics")
    print("Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        stack.materializer.child.wait()
