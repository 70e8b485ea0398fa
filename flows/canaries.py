"""The validator's canaries: what the user agrees to have published, and the sending of it.

The only part of the validator that writes where others read, so there is none without the user's consent: a file that
gives, by stream, an event with places to fill in (`steps/canaries.py`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Protocol

import numpy as np

from freshet.flows.edges.kafka import encode
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.canaries import LATENESS_MIN, Canary, CanaryLine, Probe, Template, event_time
from freshet.flows.steps.intake import Intake
from freshet.flows.steps.watch import Entity
from freshet.schemas.errors import FreshetError, Problem, Refused, listed, nearest
from freshet.schemas.event import CANARY_HEADER, NEVER_US, OFFSET, VERSION_HEADER, Contract
from freshet.schemas.ledger import Ledger
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.record import Record, partition_of
from freshet.schemas.units import instant_us
from freshet.schemas.view import View

LOG = logging.getLogger("freshet")

_MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)
_TRIED = ((0, 0), (1, 0), (0, 1))
"""Numbers and sequences of events that tell whether they differ where they must."""
_HINT = "write an event as the stream's contract has it, with {canary} in its key and its entities"

STORES = ("online", "offline")


class Publisher(Protocol):
    """What brings canaries into Kafka: `edges.canaries.CanaryWriter`."""

    def publish(self, records: Sequence[Record], delivered: Callable[[int, int, int], object]) -> None:
        """Return once all are confirmed; `delivered` hears of each its index, partition and offset."""


# --- consent ----------------------------------------------------------------------------------------------------------


def agreed(told: Mapping[str, Any], contracts: Mapping[str, Contract], pipeline: Pipeline) -> tuple[Template, ...]:
    """Return the templates of a user's consent; raises `Refused` with everything for which one cannot be used.

    Each is taken through decoding, judgement and the views' SQL, as the flow would take it.
    """
    problems = list[Problem]()
    templates = list[Template]()
    for stream, fields in told.items():
        contract = contracts.get(stream)
        if contract is None:
            meant = nearest(stream, contracts)
            hint = f"did you mean {meant}?" if meant else f"the streams are {listed(tuple(contracts))}"
            problems.append(Problem("canary", stream, "is of no declared stream", hint=hint))
        elif not isinstance(fields, Mapping):
            problems.append(Problem("canary", stream, "is no event", repr(fields)[:80], _HINT))
        else:
            template = Template(contract, fields)
            own = _problems(template, pipeline)
            problems += own
            templates += [] if own else [template]
    if problems:
        raise Refused(problems)
    return tuple(templates)


def _problems(template: Template, pipeline: Pipeline) -> list[Problem]:
    contract = template.contract
    stream, known = contract.stream, contract.model.model_fields

    def problem(fact: str, got: str, hint: str) -> Problem:
        return Problem("canary", contract.name, fact, got, hint)

    found = []
    for field in [field for field in template.fields if field not in known]:
        meant = nearest(field, known)
        hint = f"did you mean {meant}?" if meant else f"the fields are {listed(tuple(known))}"
        found.append(problem("has an unknown field", field, hint))
    if stream.lateness < LATENESS_MIN:
        fact = "is of a stream that allows for too little lateness: canaries would make its events late"
        found.append(problem(fact, str(stream.lateness), "leave this stream out"))
    if found:
        return found
    try:
        (key, first), (other_key, _), (_, second) = (
            encode(contract, template.filled(number, sequence, _MADE_AT)) for number, sequence in _TRIED
        )
        if key == other_key:
            fact, hint = "has the same key in every partition", f"write {{canary}} into {stream.key}"
            found.append(problem(fact, key.decode(errors="replace"), hint))
        if stream.event_id is not None and _event_id(contract, first) == _event_id(contract, second):
            fact, hint = "repeats its event id, so it is a duplicate", f"write {{sequence}} into {stream.event_id}"
            found.append(problem(fact, repr(_event_id(contract, first)), hint))
        entities = {} if found else entities_of(template, pipeline, (0, 1))
    except Refused as refusal:
        return [
            problem(f"cannot be published: {str(one).partition('. Hint')[0]}", "", _HINT) for one in refusal.problems
        ]
    for view, (entity, other) in entities.items():
        if entity == other or None in entity:
            fact = f"would be an event of an entity of {view} that may be somebody's own"
            hint = f"write {{canary}} into {listed(pipeline.plan(view).view.entity_names)}"
            found.append(problem(fact, " / ".join(map(str, entity)), hint))
    return found


def _event_id(contract: Contract, event: bytes) -> Any:
    return getattr(contract.model.model_validate_json(event), contract.stream.event_id or "")


def entities_of(template: Template, pipeline: Pipeline, numbers: Sequence[int]) -> dict[str, list[Entity]]:
    """Return whose rows canaries make in each view of their stream; raises `Refused` if the flow would reject them."""
    contract, plans = template.contract, pipeline.of_source(template.contract.name)
    sent = [encode(contract, template.filled(number, index, _MADE_AT)) for index, number in enumerate(numbers)]
    at_ms = np.full(len(sent), instant_us(_MADE_AT) // 1000, np.int64)
    poll = Poll(
        topic=contract.stream.topic,
        partition=0,
        partitions_count=1,
        values=[value for _, value in sent],
        keys=[key for key, _ in sent],
        versions=[str(contract.stream.version).encode()] * len(sent),
        timestamps_ms=at_ms,
        offsets=np.arange(len(sent)),
        end_offset=len(sent),
        at_end=True,
    )
    taken = Intake(contract, plans).take(PartitionJudge(contract.stream), poll)
    if taken.rejects:
        first = taken.rejects[0]
        raise Refused([Problem("canary", contract.name, f"would be rejected as {first.reason}", first.detail, _HINT)])
    found = {}
    for plan in plans:
        rows = taken.inputs[plan.view.name].sort_by(OFFSET).select(plan.view.entity_names).to_pylist()
        found[plan.view.name] = [tuple(row.values()) for row in rows]
    return found


# --- sending ----------------------------------------------------------------------------------------------------------


class _Flock:
    """The canaries of one stream: one entity for each partition, always the same."""

    def __init__(self, template: Template, pipeline: Pipeline, partitions_count: int, limit: timedelta) -> None:
        self.template, self.contract = template, template.contract
        numbers: dict[int, int] = {}
        for number in count():
            key, _ = encode(self.contract, template.filled(number, 0, _MADE_AT))
            numbers.setdefault(partition_of(key, partitions_count), number)
            if len(numbers) == partitions_count:
                break
        self._numbers = [numbers[partition] for partition in range(partitions_count)]
        self._entities = entities_of(template, pipeline, self._numbers)
        self._newest: dict[int, datetime] = {}
        name, lateness = self.contract.name, self.contract.stream.lateness
        self.probes = {
            partition: [Probe(plan.view, name, partition, lateness, limit) for plan in pipeline.of_source(name)]
            for partition in range(partitions_count)
        }

    def due(self, ledger: Ledger, now: datetime) -> dict[int, tuple[datetime, Record]]:
        """Return, by partition, the event times and records of canaries that are to be sent.

        There is none where all views wait for the one before, nor where nothing was ever published: the first event of
        a partition is its users' to set the clock by.
        """
        records, stream, sequence = {}, self.contract.stream, instant_us(now)
        marks = ledger.partitions_of(self.contract.name)
        for partition, probes in self.probes.items():
            newest_us = marks[partition].newest_us if partition in marks else NEVER_US
            if newest_us == NEVER_US or all(probe.canary is not None for probe in probes):
                continue
            at = event_time(newest_us, stream.lateness, now, self._newest.get(partition))
            self._newest[partition] = at
            key, value = encode(self.contract, self.template.filled(self._numbers[partition], sequence, at))
            headers = ((VERSION_HEADER, str(stream.version).encode()), (CANARY_HEADER, str(sequence).encode()))
            records[partition] = at, Record(stream.topic, key, value, headers, sequence // 1000)
        return records

    def sent(self, partition: int, canary: tuple[int, datetime, datetime] | None, ledger: Ledger) -> None:
        """Note a canary that Kafka has, its offset, when it was sent and its event time, or that there is none."""
        entities = {view: own[partition] for view, own in self._entities.items()}
        for probe in self.probes[partition]:
            if probe.canary is None:
                probe.send(None if canary is None else Canary(*canary, entities), ledger)


class Canaries:
    """Sends a canary into each partition once the one before it was judged, round after round.

    `seen` hears of the newest canary that all views of its stream have in a store: its partition, as
    `<stream>/<number>`, the store, and when it was sent (s since the epoch; 0 at first).
    """

    def __init__(
        self,
        templates: Sequence[Template],
        pipeline: Pipeline,
        counts: Mapping[str, int],
        publisher: Publisher,
        now: Callable[[], datetime],
        limit: timedelta,
        seen: Callable[[str, str, float], object] = lambda _, __, ___: None,
    ) -> None:
        self._publisher, self._now, self._hear_seen = publisher, now, seen
        self._flocks = [_Flock(one, pipeline, counts[one.contract.name], limit) for one in templates]
        self._trouble = ""
        probes = [probe for flock in self._flocks for own in flock.probes.values() for probe in own]
        self._seen = {(*self._place(probe), store): dict[str, float]() for probe in probes for store in STORES}
        for probe in probes:
            for store in STORES:
                self._seen[(*self._place(probe), store)][probe.view.name] = 0.0
                seen(f"{probe.stream}/{probe.partition}", store, 0.0)

    def probes(self, view: View) -> list[Probe]:
        """Return the partitions of a view's sources into which canaries are sent."""
        return [
            probe
            for flock in self._flocks
            for own in flock.probes.values()
            for probe in own
            if probe.view.name == view.name
        ]

    def judged(self, view: View, lines: Sequence[CanaryLine]) -> None:
        """Hear what is being judged of a view."""
        for line in lines:
            if line.sent_at is None:
                continue
            for store, row in (("online", line.online_row), ("offline", line.offline_row)):
                if row == "found":
                    known = self._seen[line.stream, line.partition, store]
                    known[view.name] = line.sent_at.timestamp()
                    self._hear_seen(f"{line.stream}/{line.partition}", store, min(known.values()))

    def send(self, ledger: Ledger) -> None:
        """Send what is due. What Kafka does not take is noted, and tried again in the next round."""
        now = self._now()
        due = [
            (flock, partition, at, record)
            for flock in self._flocks
            for partition, (at, record) in flock.due(ledger, now).items()
        ]
        places: dict[int, int] = {}

        def delivered(index: int, partition: int, offset: int) -> None:
            if partition == due[index][1]:  # it is another one once a topic has more partitions
                places[index] = offset

        trouble = ""
        try:
            self._publisher.publish([record for *_, record in due], delivered)
        except FreshetError as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            LOG.warning("canaries cannot be sent: %s", trouble)
        self._trouble = trouble
        sent_at = self._now()
        for index, (flock, partition, at, _) in enumerate(due):
            flock.sent(partition, (places[index], sent_at, at) if index in places else None, ledger)

    @staticmethod
    def _place(probe: Probe) -> tuple[str, int]:
        return probe.stream, probe.partition
