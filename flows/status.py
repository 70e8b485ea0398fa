"""How a deployment does, as all its parts tell: each is asked by itself, and one that does not answer is a line."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from freshet.flows import settings as settings_
from freshet.flows.edges import kafka
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.scrape import Samples, added, by_label, health, knock, quantile, risen, scrape, total
from freshet.flows.edges.standings import Standings
from freshet.flows.edges.store_config import shown
from freshet.flows.lag import LagReader, Lags
from freshet.flows.steps.freshness import State
from freshet.flows.steps.lag import TREND_S
from freshet.flows.steps.status import NO_ROUND, Part, Report, StreamStatus, ViewStatus, failing, state_of
from freshet.flows.workspace import OnlineFilled, Workspace
from freshet.schemas.errors import FreshetError
from freshet.schemas.finding import Cause
from freshet.schemas.rejects import dead_letter_topic

_LIMIT_S = 3.0
"""How long one part may take to answer."""

T = TypeVar("T")


@dataclass
class _Look:
    """What was seen at one instant."""

    at_s: float
    lags: Lags
    samples: Samples


@dataclass
class StatusReader:
    """Asks all parts of a project's deployment, again and again; the first time twice, for there to be rates.

    Rates, and how late rows were, are told of all looks of the last minute: so of the second between both if it looks
    but once, and then none of a stream's bursts may lie there. When its last event came is known in any case. The first
    two looks lie `between_s` apart.
    """

    workspace: Workspace
    between_s: float = 1.0
    _lag: LagReader | None = None
    _online: OnlineFilled | None = None
    _letters: tuple[Standings, Mapping[str, int]] | None = None
    _looks: deque[_Look] = field(default_factory=deque)
    _parts: dict[str, Part] = field(default_factory=dict)

    def look(self) -> Report:
        """Ask everything once."""
        self._parts.clear()
        if not self._looks:
            self._looks.append(self._seen())
            time.sleep(self.between_s)
        now = self._seen()
        while len(self._looks) > 1 and self._looks[0].at_s < now.at_s - TREND_S:
            self._looks.popleft()
        self._looks.append(now)
        ages_s = self._asked_of_kafka(lambda: self._last_event_ages_s(now.lags)) or {}
        for address in self._materializers:
            self._listen("materializer", address)
        validator = self._validator()
        validated_s = total(validator, "freshet_validator_last_success_timestamp_seconds")
        validated_age_s = now.at_s - validated_s if validated_s else None
        if validator:
            address = self.workspace.settings.validator_address
            self._listen("validator", address, lambda said: failing(said, validated_age_s))
            if self._parts["validator"].complaint == NO_ROUND:
                validated_age_s = None  # its first round is just ending
        self._ask_server()
        self._asked("online store", shown(self.workspace.declared_online_url), self._ping)
        letters = self._asked_of_kafka(self._dead_letters) or {}
        ledger = LedgerFile(self.workspace.offline_root)
        found, declaration = self._asked(
            "offline store", str(self.workspace.offline_root), lambda: (ledger.read(), self.workspace.status())
        ) or (None, None)
        written_at_s = None if found is None else ledger.written_at_s()
        streams = [
            self._stream(name, now, ages_s, letters.get(contract.stream.topic))
            for name, contract in self.workspace.contracts.items()
        ]
        target_s = self.workspace.source.declaration.servingRequirements.freshnessTarget.bound.total_seconds()
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
                self._view(name, streams, target_s, now, validator)
                for name in (view.name for view in self.workspace.pipeline.views)
            ],
            target_s=target_s,
            checkpoint_age_s=None if written_at_s is None else now.at_s - written_at_s,
            epoch=None if found is None else found.epoch,
            rejects=_whole(by_label(now.samples, "freshet_rejects_total", "reason")) if now.samples else None,
            validated_age_s=validated_age_s,
            declaration=declaration,
        )

    def _seen(self) -> _Look:
        places = self._materializers
        samples = self._asked("materializer", places[0], lambda: added(scrape(one, _LIMIT_S) for one in places)) or {}
        at_s = time.time()
        return _Look(at_s, self._asked_of_kafka(lambda: self._lags(at_s)) or {}, samples)

    @property
    def _materializers(self) -> list[str]:
        """Where the materializer's processes are."""
        settings = self.workspace.settings
        return [
            settings_.place_of(settings.materializer_address, number)
            for number in range(settings.materializer_processes)
        ]

    def _validator(self) -> Samples:
        settings = self.workspace.settings
        if not settings.has_validator:
            return {}
        return (
            self._asked("validator", settings.validator_address, lambda: scrape(settings.validator_address, _LIMIT_S))
            or {}
        )

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
            self._parts["server"] = Part("server", address, complaint=trouble)
        if trouble is None and settings.server_address is None:
            del self._parts["server"]

    def _listen(self, name: str, address: str, worded: Callable[[str], str] = str) -> None:
        """Ask a part that answers what it says of itself: one that fails, or waits for another, answers all along."""
        known = self._parts[name]
        if known.trouble or known.complaint:
            return
        if said := self._asked(name, address, lambda: health(address, _LIMIT_S)):
            self._parts[name] = Part(name, address, complaint=worded(said))

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
        now: _Look,
        ages_s: Mapping[tuple[str, int], float],
        letters_count: int | None,
    ) -> StreamStatus:
        topic = self.workspace.contracts[name].stream.topic
        lags = {part: lag for (of, part), lag in now.lags.items() if of == topic}
        came = done = None
        before = next((look for look in self._looks if look is not now and look.lags.keys() == now.lags.keys()), None)
        if lags and before is not None:
            earlier = {part: before.lags[topic, part] for part in lags}
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
        now: _Look,
        validator: Samples,
    ) -> ViewStatus:
        (view,) = (view for view in self.workspace.pipeline.views if view.name == name)
        own = [stream for stream in streams if stream.stream in view.sources]
        findings = None
        if validator:
            findings = _whole(by_label(validator, "freshet_validator_findings", "cause", feature_view=name))
        before = next((look for look in self._looks if look is not now and look.samples), None)
        recent: Samples = {}
        rows_per_s = None
        if before is not None and now.samples:
            recent = risen(before.samples, now.samples)
            rows = total(recent, "freshet_rows_total", feature_view=name, store="online")
            rows_per_s = rows / (now.at_s - before.at_s)
        state = state_of(own, target_s, findings, Cause.STALE_ONLINE)
        p99_s = quantile(recent, "freshet_freshness_seconds", 0.99, feature_view=name, kind="event")
        return ViewStatus(
            view=name,
            state=state,
            stalled_count=sum(stream.stalled_count for stream in own),
            partitions_count=sum(len(stream.lags) for stream in own),
            features_count=len(view.features),
            rows_per_s=rows_per_s,
            freshness_p99_s=None if state is State.STALLED else p99_s,
            age_s=max((stream.age_s for stream in own if stream.age_s is not None), default=None),
            entities_count=int(total(now.samples, "freshet_state_entities", feature_view=name))
            if now.samples
            else None,
            findings=findings,
        )


def _whole(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items() if count}
