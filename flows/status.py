"""How a deployment does, as all its parts tell: each is asked by itself, and one that does not answer is a line."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from freshet.flows import settings as settings_
from freshet.flows.edges import kafka
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.scrape import Samples, by_label, health, knock, quantile, scrape, total
from freshet.flows.edges.standings import Standings
from freshet.flows.edges.store_config import shown
from freshet.flows.lag import LagReader, Lags
from freshet.flows.live import OnlineFilled, Workspace
from freshet.flows.steps.status import Part, Report, StreamStatus, ViewStatus, state_of
from freshet.schemas.errors import FreshetError
from freshet.schemas.finding import Cause
from freshet.schemas.rejects import dead_letter_topic

_LIMIT_S = 3.0
"""How long one part may take to answer."""
BETWEEN_S = 1.0
"""How far apart two looks lie, by which rates are told."""

T = TypeVar("T")


@dataclass
class _Look:
    """What was seen at one instant."""

    at_s: float
    lags: Lags
    samples: Samples


@dataclass
class StatusReader:
    """Asks all parts of a project's deployment, again and again; the first time twice, for there to be rates."""

    workspace: Workspace
    _lag: LagReader | None = None
    _online: OnlineFilled | None = None
    _letters: tuple[Standings, Mapping[str, int]] | None = None
    _before: _Look | None = None
    _parts: dict[str, Part] = field(default_factory=dict)

    def look(self) -> Report:
        """Ask everything once."""
        self._parts.clear()
        if self._before is None:
            self._before = self._seen()
            time.sleep(BETWEEN_S)
        before, now = self._before, self._seen()
        self._before = now
        ages_s = self._asked_of_kafka(lambda: self._last_event_ages_s(now.lags)) or {}
        validator = self._scraped("validator", self.workspace.settings.validator_address)
        self._ask_server()
        self._asked("online store", shown(self.workspace.declared_online_url), self._ping)
        letters = self._asked_of_kafka(self._dead_letters) or {}
        ledger = LedgerFile(self.workspace.offline_root)
        found, declaration = self._asked(
            "offline store", str(self.workspace.offline_root), lambda: (ledger.read(), self.workspace.status())
        ) or (None, None)
        written_at_s = None if found is None else ledger.written_at_s()
        streams = [
            self._stream(name, before, now, ages_s, letters.get(contract.stream.topic))
            for name, contract in self.workspace.contracts.items()
        ]
        target_s = self.workspace.source.declaration.servingRequirements.freshnessTarget.bound.total_seconds()
        validated_s = total(validator, "freshet_validator_last_success_timestamp_seconds")
        return Report(
            project=self.workspace.pipeline.project,
            at=datetime.fromtimestamp(now.at_s, UTC),
            parts=[
                self._parts[name]
                for name in ("kafka", "online store", "offline store", "materializer", "validator", "server")
                if name in self._parts
            ],
            streams=streams,
            views=[
                self._view(name, streams, target_s, before, now, validator)
                for name in (view.name for view in self.workspace.pipeline.views)
            ],
            target_s=target_s,
            checkpoint_age_s=None if written_at_s is None else now.at_s - written_at_s,
            epoch=None if found is None else found.epoch,
            rejects=_whole(by_label(now.samples, "freshet_rejects_total", "reason")) if now.samples else None,
            validated_age_s=now.at_s - validated_s if validated_s else None,
            declaration=declaration,
        )

    def _seen(self) -> _Look:
        samples = self._scraped("materializer", self.workspace.settings.materializer_address)
        at_s = time.time()
        return _Look(at_s, self._asked_of_kafka(lambda: self._lags(at_s)) or {}, samples)

    def _lags(self, at_s: float) -> Lags:
        self._lag = self._lag or self.workspace.lag_reader(_LIMIT_S)
        return self._lag.look(at_s)

    def _last_event_ages_s(self, lags: Lags) -> dict[tuple[str, int], float]:
        newest = self._lag.newest_at_s(lags) if self._lag else {}
        answered_s = time.time()  # later than `lags`: what came since then must not seem to come from the future
        return {place: answered_s - at_s for place, at_s in newest.items() if at_s is not None}

    def _ping(self) -> None:
        if self._online is None:
            self._online = self.workspace.online(_LIMIT_S)
        else:
            self._online.ping()

    def _dead_letters(self) -> dict[str, int]:
        """Return how many messages are in the dead letters of each topic."""
        sources = [contract.stream.topic for contract in self.workspace.contracts.values()]
        topics = {topic: dead_letter_topic(topic) for topic in sources}
        if self._letters is None:
            cluster = replace(self.workspace.kafka, patience_s=_LIMIT_S)
            made = {letters: kafka.partitions_count(cluster, letters) for letters in topics.values()}
            self._letters = Standings(cluster, self.workspace.group), made
        standings, counts = self._letters
        return {
            topic: sum(one.end - one.first for one in standings.of(letters, counts[letters]).values())
            for topic, letters in topics.items()
        }

    def _ask_server(self) -> None:
        """Ask the server, which there need not be: where nobody says that there is one, its silence means nothing.

        One that speaks TLS may want to know who asks, so of that it is only seen whether it listens.
        """
        settings = self.workspace.settings
        address = settings.server_address or settings_.SERVER_ADDRESS
        ask = knock if settings.server_certificate else health
        trouble = self._asked("server", address, lambda: ask(address, _LIMIT_S))
        if trouble:
            self._parts["server"] = Part("server", address, trouble)
        if trouble is None and settings.server_address is None:
            del self._parts["server"]

    def _scraped(self, name: str, address: str) -> Samples:
        return self._asked(name, address, lambda: scrape(address, _LIMIT_S)) or {}

    def _asked_of_kafka(self, ask: Callable[[], T]) -> T | None:
        """Ask Kafka, but not again in the same look if it did not answer."""
        known = self._parts.get("kafka")
        return None if known and known.trouble else self._asked("kafka", self.workspace.settings.brokers, ask)

    def _asked(self, name: str, where: str, ask: Callable[[], T]) -> T | None:
        """Ask a part; note whether it answered."""
        try:
            answer = ask()
        except FreshetError as error:
            said = str(error).splitlines()[0].partition(". Hint:")[0]
            self._parts[name] = Part(name, where, said)
            return None
        self._parts[name] = Part(name, where)
        return answer

    def _stream(
        self,
        name: str,
        before: _Look,
        now: _Look,
        ages_s: Mapping[tuple[str, int], float],
        letters_count: int | None,
    ) -> StreamStatus:
        topic = self.workspace.contracts[name].stream.topic
        lags = {part: lag for (of, part), lag in now.lags.items() if of == topic}
        earlier = {part: lag for (of, part), lag in before.lags.items() if of == topic}
        came = done = None
        if lags and lags.keys() == earlier.keys():
            length_s = now.at_s - before.at_s
            came = sum(lags[part].end_offset - earlier[part].end_offset for part in lags) / length_s
            waits = sum(lags[part].messages_count - earlier[part].messages_count for part in lags)
            done = max(0.0, came - waits / length_s)
        own_s = {part: age_s for (of, part), age_s in ages_s.items() if of == topic}
        return StreamStatus(name, topic, lags, came, done, letters_count, own_s)

    def _view(
        self,
        name: str,
        streams: list[StreamStatus],
        target_s: float,
        before: _Look,
        now: _Look,
        validator: Samples,
    ) -> ViewStatus:
        (view,) = (view for view in self.workspace.pipeline.views if view.name == name)
        own = [stream for stream in streams if stream.stream in view.sources]
        findings = None
        if validator:
            findings = _whole(by_label(validator, "freshet_validator_findings", "cause", feature_view=name))
        rows = [total(look.samples, "freshet_rows_total", feature_view=name, store="online") for look in (before, now)]
        has_rates = bool(before.samples and now.samples)
        return ViewStatus(
            view=name,
            state=state_of(own, target_s, findings, Cause.STALE_ONLINE),
            stalled_count=sum(stream.stalled_count for stream in own),
            partitions_count=sum(len(stream.lags) for stream in own),
            features_count=len(view.features),
            rows_per_s=max(0.0, rows[1] - rows[0]) / (now.at_s - before.at_s) if has_rates else None,
            freshness_p99_s=quantile(now.samples, "freshet_freshness_seconds", 0.99, feature_view=name, kind="event"),
            entities_count=int(total(now.samples, "freshet_state_entities", feature_view=name))
            if now.samples
            else None,
            findings=findings,
        )


def _whole(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items() if count}
