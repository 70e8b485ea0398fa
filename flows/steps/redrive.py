"""Dead letters: which there are, which are meant, and what the flow would make of each if it came again now.

An event that is sent again stands behind everything else of its partition. So it is judged as a new one: against
today's contract and expressions, its partition's newest event time, and the present as its Kafka time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.decode import Decoder
from freshet.flows.steps.intake import Intake
from freshet.schemas.event import EVENT_TIME, NEVER_US, VERSION_HEADER
from freshet.schemas.poll import Poll
from freshet.schemas.record import header, partition_of
from freshet.schemas.rejects import Origin, Reason, Reject, receipt_of, reject_of


@dataclass(frozen=True, slots=True)
class Letter:
    """One event among the dead letters, and whether it was sent again."""

    reject: Reject
    redriven: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant; what is None is left open.

    The time is Kafka's own of the event, from `since_ms` on and before `until_ms`. `limit` takes the first by time.
    """

    reasons: frozenset[Reason] | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int | None = None
    redriven_too: bool = False

    def meets_time(self, reject: Reject) -> bool:
        """Say whether an event is of the time that is meant."""
        at = reject.timestamp_ms
        return (self.since_ms is None or at >= self.since_ms) and (self.until_ms is None or at < self.until_ms)

    def meets(self, letter: Letter) -> bool:
        """Say whether a letter is meant, time apart."""
        return (self.reasons is None or letter.reject.reason in self.reasons) and (
            self.redriven_too or not letter.redriven
        )


@dataclass(frozen=True, slots=True)
class Gathered:
    """The letters of a topic that are meant, and how many records there are that are no dead letters of ours."""

    letters: tuple[Letter, ...]
    others_count: int


def gather(topic: str, polls: Iterable[Poll], wanted: Wanted) -> Gathered:
    """Gather a topic's dead letters, each event once, from all records of its dead-letter topic.

    A flow that crashed before its epoch closed keeps an event twice: the later word holds. Receipts may stand before
    the letter, or in another partition.
    """
    rejects: dict[Origin, Reject] = {}
    redriven: set[Origin] = set()
    others_count = 0
    for poll in polls:
        for index, (key, value) in enumerate(zip(poll.keys, poll.values, strict=True)):
            headers = None if poll.headers is None else poll.headers[index]
            origin = receipt_of(headers)
            reject = None if origin else reject_of(key, value, headers, int(poll.timestamps_ms[index]))
            if origin is not None:
                redriven.add(origin)
            elif reject is None or reject.topic != topic:
                others_count += 1
            elif wanted.meets_time(reject):
                rejects[reject.origin] = reject
    letters = (Letter(reject, origin in redriven) for origin, reject in rejects.items())
    return Gathered(tuple(letter for letter in letters if wanted.meets(letter)), others_count)


def in_order(gathered: Iterable[Gathered], limit: int | None) -> tuple[Letter, ...]:
    """Return the letters of all topics by time, no more than the limit."""
    letters = (letter for one in gathered for letter in one.letters)
    return tuple(sorted(letters, key=lambda letter: (letter.reject.timestamp_ms, letter.reject.origin))[:limit])


@dataclass(frozen=True, slots=True)
class Again:
    """A letter that would be rejected again, and why."""

    reject: Reject
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What to do with letters: those to be sent, in this order, and those that would come back."""

    fit: tuple[Reject, ...]
    again: tuple[Again, ...]


def judge(
    rejects: Sequence[Reject],
    intake: Intake,
    newest_us: Mapping[tuple[str, int], int],
    partitions_count: int,
    now_us: int,
) -> Judged:
    """Judge one stream's letters as the flow would if they came now.

    `newest_us` is the greatest event time of each (stream, partition), as far as known, and `partitions_count` the
    number that the topic really has: a key may have moved since. The fit ones are sent by event time, so that none
    makes another late. One without a key may go to any partition, so all of them must take it.
    """
    contract = intake.contract
    decoded = Decoder(contract).decode(_poll(rejects, range(len(rejects)), now_us))
    why = {reject.offset: (reject.reason, reject.detail) for reject in decoded.rejects}
    times = decoded.events.column(EVENT_TIME).cast(pa.int64()).to_pylist()
    placed = sorted((time, rejects[index].origin, int(index)) for time, index in zip(times, decoded.at, strict=True))
    by_partition: dict[int | None, list[int]] = {}
    for _, _, index in placed:
        key = rejects[index].key
        partition = None if key is None else partition_of(key, partitions_count)
        by_partition.setdefault(partition, []).append(index)
    unrepeated = replace(contract.stream, event_id=None)  # a duplicate is no reject: the flow passes over it
    for partition, indices in by_partition.items():
        known = [
            time for (stream, of), time in newest_us.items() if stream == contract.name and partition in (of, None)
        ]
        taken = intake.take(
            PartitionJudge(unrepeated, newest_us=max(known, default=NEVER_US)), _poll(rejects, indices, now_us)
        )
        why |= {reject.offset: (reject.reason, reject.detail) for reject in taken.rejects}
    return Judged(
        fit=tuple(rejects[index] for _, _, index in placed if index not in why),
        again=tuple(Again(rejects[index], *said) for index, said in sorted(why.items())),
    )


def _poll(rejects: Sequence[Reject], indices: Sequence[int], now_us: int) -> Poll:
    """Return some letters as messages that come now; a message's offset is the letter's index."""
    chosen = [rejects[index] for index in indices]
    return Poll(
        topic=chosen[0].topic if chosen else "",
        partition=0,
        partitions_count=1,
        values=[reject.value for reject in chosen],
        keys=[reject.key for reject in chosen],
        versions=[header(reject.headers, VERSION_HEADER) for reject in chosen],
        timestamps_ms=np.full(len(chosen), now_us // 1000, np.int64),
        offsets=np.array(indices, np.int64),
        end_offset=len(rejects),
        at_end=False,
        headers=[reject.headers for reject in chosen],
    )
