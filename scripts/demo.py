"""Everything at once on embedded parts: a broker, an online store, the materializer, a producer, and the checks.

Made edits flow for some seconds, or those of --events FILE with their times shifted to end now. One channel falls
silent at once: its values fall though no event comes. Then what Feast reads online is compared with the newest offline
rows, and all offline rows with DuckDB's own answer over the same events.

With --break CAUSE it is broken on purpose after those seconds, while edits go on, and the validator looks until it
finds that: exits 1 on a finding, 4 if there is none in two minutes.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from freshet.flows.edges import event_file, feast, kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.store_config import store_config
from freshet.flows.edges.valkey import Valkey
from freshet.flows.live import Workspace
from freshet.flows.live_validator import open_observer
from freshet.flows.materializer import archive_name
from freshet.flows.observer import Sampling
from freshet.flows.settings import Settings
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.oracle import compare, union_of
from freshet.flows.validator import EXIT_CODES, exit_code, judged
from freshet.schemas.errors import Unavailable, listed
from freshet.schemas.finding import Alarm, Cause, Outcome, Status, Verdict, worst
from freshet.schemas.view import View
from freshet.scripts import check, reference
from freshet.scripts.apply import apply
from freshet.scripts.cli import wrong_use
from freshet.scripts.faults import breaks
from freshet.scripts.faults.breaks import Fault
from freshet.scripts.faults.deeds import Account
from freshet.scripts.made_edits import edits, user

_CLOCK = "freshet_clock_timestamp_seconds"
_WAIT_LIMIT_S = 60.0
_SEED = 2015
_QUIET = "#quiet.wikipedia"
_QUIET_AGE = timedelta(seconds=57)
_ROUND_S, _FIND_LIMIT_S = 2.0, 120.0


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
        stack.wait_until_ready()
        sender = _Sender(stack, words)
        sender.start()
        _show(stack, sender)
        sender.join()
        sender.check()
        if words.events is None:
            _show_decay(stack)
        if words.keep:
            _keep(stack)
        clocks = stack.clocks_us()
        stack.materializer.send_signal(signal.SIGTERM)
        if stack.materializer.wait(_WAIT_LIMIT_S) != 0:
            raise Unavailable(f"the materializer ended with {stack.materializer.returncode}:\n{stack.said()}")
        return _summary(stack.workspace, clocks)


@dataclass
class _Stack:
    """What the demo started."""

    workspace: Workspace
    materializer: "subprocess.Popen[bytes]"
    log: Path
    metrics: str
    fault: Fault

    def wait_until_ready(self) -> None:
        """Wait until the materializer answers; raises `Unavailable` if it ends or does not."""
        deadline = time.monotonic() + _WAIT_LIMIT_S
        while not self.samples():
            if time.monotonic() > deadline:
                raise Unavailable(f"the materializer does not answer at {self.metrics}:\n{self.said()}")
            self.ended_within(0.1)

    def ended_within(self, limit_s: float) -> bool:
        """Wait so long, or until the materializer ends; say whether it did."""
        try:
            self.materializer.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def said(self) -> str:
        """Return the last lines of the materializer's log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    def clocks_us(self) -> dict[str, int]:
        """Return up to when each view's rows follow the time."""
        found = ((dict(pairs), value) for (name, pairs), value in self.samples().items() if name == _CLOCK)
        return {pairs["feature_view"]: int(value * 10**6) for pairs, value in found}

    def samples(self) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return all metrics of the materializer by name and labels."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:  # ours
                text = answer.read().decode()
        except OSError as error:
            if self.materializer.poll() is not None:
                raise Unavailable(
                    f"the materializer ended with {self.materializer.returncode}:\n{self.said()}"
                ) from error
            return {}
        families = text_string_to_metric_families(text)
        return {
            (one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples
        }


def _start(parts: contextlib.ExitStack, settings: Settings, cause: Cause | None = None) -> _Stack:
    """Start all parts, each ended with the demo, and a fault among them."""
    root = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="freshet-demo-")))
    reference.copy(root)
    broker = parts.enter_context(Broker.start())
    valkey = parts.enter_context(Valkey.start())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    settings = dataclasses.replace(
        settings, project=root, brokers=broker.address, online_store=valkey.url, metrics_address=metrics, kafka={}
    )
    workspace = Workspace.open(settings)
    for topic, count in kafka.topics_of(workspace.contracts.values()).items():
        broker.create_topic(topic, count)
    apply(workspace)
    fault = parts.enter_context(breaks.put(cause, workspace, root))
    environment = {
        **os.environ,
        "FRESHET_PROJECT": str(root),
        "FRESHET_BROKERS": broker.address,
        "FRESHET_ONLINE_STORE": fault.online_url,
        "FRESHET_METRICS_ADDRESS": metrics,
    }
    log = root / "materializer.log"
    with log.open("wb") as out:
        materializer = subprocess.Popen(  # noqa: S603  # our own
            fault.command, env=environment, stdout=out, stderr=out, start_new_session=True
        )  # Ctrl-C is for the demo, which then ends its parts in order
    fault.materializer = materializer
    parts.callback(_end, materializer)
    print(f"broker {broker.address}, online store {valkey.url}, metrics http://{metrics}/metrics")
    views = workspace.pipeline.views
    print(f"project {workspace.pipeline.project}: {len(views)} feature views, declared in features.yaml")
    return _Stack(workspace, materializer, log, metrics, fault)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # one that was made to hang cannot end
        try:
            process.wait(_WAIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Sender(threading.Thread):
    """Publishes the demo's events beside everything else."""

    def __init__(self, stack: _Stack, words: argparse.Namespace) -> None:
        super().__init__(name="producer", daemon=True)
        self._contract, self._cluster = stack.workspace.contracts["wiki_edits"], stack.workspace.kafka
        self._fault, self._words = stack.fault, words
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self.sent_count = 0

    def run(self) -> None:
        """Publish until there is no more."""
        try:
            with kafka.Producer(self._cluster, self._contract) as producer:
                for wait_s, event in self._timed():
                    if self._ended.is_set():
                        break
                    if wait_s > 0:
                        producer.poll(wait_s)
                    producer.send(event)
                    self.sent_count += 1
        except BaseException as error:  # noqa: BLE001  # handed to the main thread, which raises it
            self._error = error

    def check(self) -> None:
        """Raise what went wrong while publishing."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Publish no more."""
        self._ended.set()
        self.join()

    def _timed(self) -> Iterator[tuple[float, Any]]:
        """Give each event and how long to wait for its turn."""
        started = time.monotonic()
        if self._words.events is None:
            count = max(2, int(self._words.seconds * self._words.rate)) if self._words.cause is None else None
            for number, made in enumerate(itertools.islice(edits(_SEED), count)):
                if number < 2:
                    made |= {"channel": _QUIET, "time": (datetime.now(UTC) - _QUIET_AGE).isoformat()}
                yield started + number / self._words.rate - time.monotonic(), self._fault.sent(made)
            return
        events = [json.loads(line) for line in event_file.lines(self._words.events)]
        times = [datetime.fromisoformat(event[self._contract.stream.event_time]) for event in events]
        if not events:
            raise wrong_use("--events", "names a file without events", "give one event a line")
        first, last, speed = min(times), max(times), self._words.speed
        shift = datetime.now(UTC) + (timedelta(0) if speed is None else (last - first) / speed) - last
        for event, at in zip(events, times, strict=True):
            event[self._contract.stream.event_time] = (at + shift).isoformat()
            turn = started + (0 if speed is None else (at - first).total_seconds() / speed)
            yield turn - time.monotonic(), json.dumps(event)


def _show(stack: _Stack, sender: _Sender) -> None:
    """Print a line a second until everything that was sent is durable."""
    view = stack.workspace.pipeline.views[0]
    online = OnlineStore(stack.workspace.online_url, stack.workspace.pipeline.project, stack.workspace.pipeline.views)
    watched: tuple[Any, ...] | None = (user(0),)
    before, deadline = 0.0, time.monotonic() + _WAIT_LIMIT_S
    print("     events/s   events     rows online   lag   freshness p50   p99   one entity's features, changing")
    for second in itertools.count(1):
        stack.ended_within(1.0)
        samples = stack.samples()
        taken = _total(samples, "freshet_events_total")
        rows = _total(samples, "freshet_rows_total", store="online")
        lag = _total(samples, "kafka_consumergroup_lag_sum")
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
            deadline = time.monotonic() + _WAIT_LIMIT_S
        before = taken
        if not sender.is_alive() and taken >= sender.sent_count and lag == 0:
            return
        if stack.materializer.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"the materializer took {taken:.0f} of {sender.sent_count} events:\n{stack.said()}")


def _show_decay(stack: _Stack) -> None:
    """Wait until time alone has emptied the silent channel's last minute, and say so; raises `Unavailable` if never."""
    view = stack.workspace.pipeline.plan("wiki_edits_by_channel").view
    online = OnlineStore(stack.workspace.online_url, stack.workspace.pipeline.project, stack.workspace.pipeline.views)
    deadline = time.monotonic() + _WAIT_LIMIT_S
    while True:
        [row] = online.read(view, [(_QUIET,)])
        if row is not None and row.features["chan_edits_1m"] == 0:
            break
        if stack.ended_within(0.1) or time.monotonic() > deadline:
            raise Unavailable(f"{_QUIET} still has {row and row.features}:\n{stack.said()}")
    at = f"{row.event_timestamp:%H:%M:%S}"
    print(f"\nno event since: {_QUIET} had 2 edits a minute, chan_edits_1m=0 at {at} by time alone")


_Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def _total(samples: _Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, pairs), value in samples.items() if found == name and wanted <= set(pairs))


def _quantile(samples: _Samples, share: float) -> str:
    """Return the bucket's bound under which the share of all rows were readable."""
    buckets: dict[float, float] = {}
    for (name, pairs), value in samples.items():
        if name == "freshet_freshness_seconds_bucket":
            bound = float(dict(pairs)["le"])
            buckets[bound] = buckets.get(bound, 0) + value
    total = buckets.get(float("inf"), 0)
    found = next((bound for bound in sorted(buckets) if total and buckets[bound] >= share * total), None)
    return "-" if found is None else f"<{found * 1000:.0f}ms" if found < 1 else f"<{found:g}s"


def _summary(workspace: Workspace, clocks_us: Mapping[str, int]) -> int:
    """Compare everything with everything, and say what was compared; returns the exit code.

    `clocks_us` has, for each view, a time up to which all its ticks were made.
    """
    offline = OfflineStore(workspace.offline_root)
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
        stack = _start(parts, settings, Cause(words.cause))
        validator, sender = _Validator(stack.workspace), _Sender(stack, words)
        stack.wait_until_ready()
        parts.callback(sender.end)
        sender.start()
        print(f"made edits flow, {words.rate:g} a second, and the validator looks every {_ROUND_S:g} s")
        whole_until = time.monotonic() + words.seconds
        while time.monotonic() < whole_until or not validator.compared_count:
            _show_alarms("opened before anything was broken", validator.look())
            if time.monotonic() > whole_until + _WAIT_LIMIT_S:
                raise Unavailable(f"the validator has compared nothing:\n{stack.said()}")
        print(f"{words.cause} from now on, made outside of the validator")
        stack.fault.begin()
        deadline = time.monotonic() + _FIND_LIMIT_S
        while time.monotonic() < deadline:
            opened, now, account = validator.look(), time.time(), stack.fault.account()
            sender.check()
            if stack.ended_within(0):
                raise Unavailable(f"the materializer ended with {stack.materializer.returncode}:\n{stack.said()}")
            if account.first_effective_at is None:
                _show_alarms("opened before the fault had an effect", opened)
                continue
            own = [alarm for alarm in opened if alarm.finding.cause == words.cause]
            _show_alarms("opened beside it", [alarm for alarm in opened if alarm not in own])
            if own:
                _show_alarms(f"found {now - account.first_effective_at:.1f} s after the fault's first effect", own)
                _show_account(account, own)
                return EXIT_CODES[Outcome.VIOLATED]
        print(f"not found within {_FIND_LIMIT_S:g} s; of {words.cause}:\n{stack.said()}")
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


def _keep(stack: _Stack) -> None:
    """Wait for Ctrl-C, everything running."""
    root = stack.workspace.project.root
    settings = stack.workspace.settings
    print(f"\neverything keeps running; the project is in {root}. In another terminal:")
    print(f"  export FRESHET_PROJECT={root} FRESHET_BROKERS={settings.brokers}")
    print(f"  export FRESHET_ONLINE_STORE={settings.online_store}")
    print("  freshet check")
    print("  freshet produce FILE")
    print(f"  curl http://{stack.metrics}/metrics")
    print("Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        stack.materializer.wait()
