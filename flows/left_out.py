"""What Kafka has of an entity that is in no archive: dead letters, events that repeat others, and those that wait.

Topics may be long, so of each only some messages are looked through: the newest dead letters, and of the events what
follows the entity's archived ones, where a repeated one would be, and what is not durable yet.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from freshet.flows.steps.decode import Decoder
from freshet.flows.steps.explain import Left, Why
from freshet.flows.steps.redrive import Wanted, gather
from freshet.schemas.event import EVENT_TIME, VERSION_HEADER, Contract
from freshet.schemas.ledger import source_key
from freshet.schemas.poll import Poll
from freshet.schemas.record import header, partition_of
from freshet.schemas.rejects import Origin, Reject, dead_letter_topic
from freshet.schemas.view import View

_MESSAGES_MAX = 50_000
"""So many messages of a topic are looked through."""
_TAIL_COUNT = 5_000
"""So many of them may follow the last archived event that matters: a repeated event comes after the first."""

_PLAIN = re.compile(r"[A-Za-z0-9 #$%()*,.:;!?@\[\]^_{|}~-]+")
"""What every JSON encoder spells in the same way; some escape other characters, each as it likes."""


class Log(Protocol):
    """Kafka, as far as it is read."""

    def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """Return each partition's first offset and the one after its last."""

    def span(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Poll]:
        """Give what a partition still has from an offset up to another, or a bit more."""


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of Kafka, as it can be decoded."""

    origin: Origin
    key: bytes | None
    value: bytes | None
    version: bytes | None
    timestamp_ms: int


@dataclass
class LeftOut:
    """Looks for the events of one entity of a view; `notes` says what was not looked at."""

    view: View
    contracts: Mapping[str, Contract]
    entity: tuple[Any, ...]
    log: Log
    notes: list[str] = field(default_factory=list)

    def letters(self) -> list[Left]:
        """Return the entity's dead letters, of the newest ones of each topic. Raises `Refused` and `Unavailable`."""
        found = list[Left]()
        for stream in self.view.sources:
            contract = self.contracts[stream]
            topic = contract.stream.topic
            letters = gather(topic, self._newest(dead_letter_topic(topic)), Wanted(redriven_too=True)).letters
            by_origin = {letter.reject.origin: letter for letter in letters}
            for message, at in self._own(contract, [_of_reject(letter.reject) for letter in letters]):
                letter = by_origin[message.origin]
                sent = "; it was sent again since" if letter.redriven else ""
                found.append(Left(message.origin, at, letter.reject.reason.value, f"{letter.reject.detail}{sent}"))
        return sorted(found, key=lambda one: one.origin)

    def others(
        self, known: Iterable[Origin], archived: Mapping[str, Mapping[int, Sequence[int]]], durable: Mapping[str, int]
    ) -> list[Left]:
        """Return events of the entity that are not known: neither archived nor dead letters.

        `archived` has the offsets of its archived events that matter, by stream and partition, and `durable` up to
        which offset each source partition is. Raises `Refused` and `Unavailable`.
        """
        found, known = list[Left](), {*known}
        for stream in self.view.sources:
            contract, offsets = self.contracts[stream], archived.get(stream, {})
            topic = contract.stream.topic
            known |= {Origin(topic, part, offset) for part, those in offsets.items() for offset in those}
            for partition, start, stop in self._spans(contract, offsets, self.log.bounds(topic), durable):
                done = durable.get(source_key(stream, partition), 0)
                messages = self._candidates(contract, self.log.span(topic, partition, start, stop), stop)
                for message, at in self._own(contract, messages):
                    if message.origin not in known:
                        found.append(Left(message.origin, at, *_why(contract, message.origin.offset, done)))
        return sorted(found, key=lambda one: one.origin)

    def _newest(self, topic: str) -> Iterator[Poll]:
        """Give the newest messages of a topic."""
        spans = {part: (low, end) for part, (low, end) in self.log.bounds(topic).items() if end > low}
        most = _MESSAGES_MAX // max(1, len(spans))
        self._say_skipped(topic, sum(max(0, end - low - most) for low, end in spans.values()))
        for partition, (low, end) in spans.items():
            yield from self.log.span(topic, partition, max(low, end - most), end)

    def _spans(
        self,
        contract: Contract,
        archived: Mapping[int, Sequence[int]],
        bounds: Mapping[int, tuple[int, int]],
        durable: Mapping[str, int],
    ) -> list[tuple[int, int, int]]:
        """Return which partitions are worth a look, each from an offset up to another."""
        topic, key = contract.stream.topic, self._key(contract)
        likely = bounds.keys() if key is None else {*archived, partition_of(key, len(bounds))} & bounds.keys()
        most, skipped_count, found = _MESSAGES_MAX // max(1, len(likely)), 0, list[tuple[int, int, int]]()
        for partition in sorted(likely):
            low, end = bounds[partition]
            done = min(max(durable.get(source_key(contract.name, partition), low), low), end)
            offsets = archived.get(partition, ())
            if offsets:
                first, stop = max(low, min(offsets)), min(done, max(offsets) + _TAIL_COUNT)
                start = max(first, stop - most)
                skipped_count += max(0, start - first)
                if min(offsets) < low:
                    self.notes.append(f"{topic}/{partition} begins at offset {low}: Kafka has deleted what was before")
                found += [(partition, start, stop)] if stop > start else []
            until = min(end, done + most)
            skipped_count += end - until
            found += [(partition, done, until)] if until > done else []
        self._say_skipped(topic, skipped_count)
        return found

    def _say_skipped(self, topic: str, count: int) -> None:
        if count:
            self.notes.append(f"{count:,} messages of {topic} were not looked at")

    def _key(self, contract: Contract) -> bytes | None:
        """Return the key under which Freshet's producers send the entity's events; None where it is not the key's."""
        values = dict(zip(self.view.entity_names, self.entity, strict=True))
        return str(values[contract.stream.key]).encode() if contract.stream.key in values else None

    def _candidates(self, contract: Contract, polls: Iterable[Poll], stop: int) -> list[_Message]:
        """Return the messages before an offset, without most of those that are not the entity's: decoding is slow."""
        key = self._key(contract)
        plain = [value.encode() for value in self.entity if isinstance(value, str) and _PLAIN.fullmatch(value)]
        found = list[_Message]()
        for poll in polls:
            for index, (of, value) in enumerate(zip(poll.keys, poll.values, strict=True)):
                if value is None or poll.offsets[index] >= stop:
                    continue
                if of == key if key is not None and of is not None else all(word in value for word in plain):
                    origin = Origin(poll.topic, poll.partition, int(poll.offsets[index]))
                    at_ms = int(poll.timestamps_ms[index])
                    found.append(_Message(origin, of, value, poll.versions[index], at_ms))
        return found

    def _own(self, contract: Contract, messages: Sequence[_Message]) -> Iterator[tuple[_Message, datetime | None]]:
        """Give those messages that are the entity's, each with its event time, if it can be told."""
        decoded = Decoder(contract).decode(_poll(messages))
        names = [*self.view.entity_names, EVENT_TIME]
        lines = zip(*(decoded.events.column(name).to_pylist() for name in names), strict=True)
        whole = dict(zip(decoded.at.tolist(), lines, strict=True))
        for index, message in enumerate(messages):
            if index not in whole:
                if self._is_named_in(contract, message):
                    yield message, None
            elif whole[index][:-1] == self.entity:
                yield message, whole[index][-1]

    def _is_named_in(self, contract: Contract, message: _Message) -> bool:
        """Say whether a message that breaks its contract is the entity's all the same."""
        try:
            told = json.loads(message.value or b"")
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, dict):
            return all(told.get(name) == own for name, own in zip(self.view.entity_names, self.entity, strict=True))
        return len(self.entity) == 1 and message.key is not None and message.key == self._key(contract)


def _why(contract: Contract, offset: int, durable: int) -> tuple[str, str]:
    if offset >= durable:
        return Why.WAITING, "it is not durable yet"
    if contract.stream.event_id is None:
        return Why.MISSING, "it is neither archived nor among the dead letters that were looked at"
    return Why.DUPLICATE, f"its {contract.stream.event_id} came before"


def _of_reject(reject: Reject) -> _Message:
    version = header(reject.headers, VERSION_HEADER)
    return _Message(reject.origin, reject.key, reject.value, version, reject.timestamp_ms)


def _poll(messages: Sequence[_Message]) -> Poll:
    """Return messages as one poll; each has its index for an offset."""
    return Poll(
        topic="",
        partition=0,
        partitions_count=1,
        values=[one.value for one in messages],
        keys=[one.key for one in messages],
        versions=[one.version for one in messages],
        timestamps_ms=np.array([one.timestamp_ms for one in messages], np.int64),
        offsets=np.arange(len(messages)),
        end_offset=len(messages),
        at_end=False,
    )
