"""From a poll to what the windows need: decode, judge, compute the row-level parts. One stream at a time.

An event is accepted by all views of its stream or by none, so a row-level expression that fails on an event rejects it
everywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.decode import Decoded, Decoder
from freshet.flows.steps.sql import Engine, Projector
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import CANARY_HEADER, OFFSET, PARTITION, Contract
from freshet.schemas.plan import ViewPlan
from freshet.schemas.poll import Poll
from freshet.schemas.record import header
from freshet.schemas.rejects import Reason, Reject

_TOGETHER_MESSAGES = 10_000
"""What SQL may take is limited by the call, so no call gets more: polls are put together up to this, and cut by it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one poll: accepted events, each view's inputs from them, and the rest.

    `newest_us` is the greatest event time accepted of the partition so far, `caught_up_us` and `epoch` as in `Poll`.
    At `canary_offsets` the accepted events are the validator's.
    """

    stream: str
    partition: int
    partitions_count: int
    events: pa.Table
    inputs: Mapping[str, pa.Table]
    rejects: tuple[Reject, ...]
    duplicates_count: int
    newest_us: int
    caught_up_us: int | None
    epoch: int
    canary_offsets: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Read:
    """One poll, read without knowing what came before it: its events, each view's inputs from them, and the rest.

    `at` says which message each event was, `failed` on which events an expression fails, and how: inputs have the
    others, in their order.
    """

    poll: Poll
    events: pa.Table
    at: npt.NDArray[np.int64]
    rejects: tuple[Reject, ...]
    inputs: Mapping[str, pa.Table]
    failed: Mapping[int, str]


class Intake:
    """Takes the polls of one stream: reads them, many at once, and judges each by what came before.

    A `database`, else a new one, serves one thread.
    """

    def __init__(self, contract: Contract, plans: Sequence[ViewPlan], database: Engine | None = None) -> None:
        self.contract = contract
        self._decoder = Decoder(contract)
        self._empty = Decoded(contract.schema.empty_table(), np.zeros(0, np.int64), ())
        self._nothing = {plan.view.name: plan.inputs.empty_table() for plan in plans}
        self._projectors = {plan.view.name: Projector(plan, contract.name, database) for plan in plans}

    def take(self, judge: PartitionJudge, poll: Poll) -> Taken:
        """Take one poll of the partition that `judge` judges."""
        (read,) = self.read([poll])
        return self.judge(judge, read)

    def read(self, polls: Sequence[Poll]) -> list[Read]:
        """Read polls of any partitions; inputs of many are computed at once, which costs little more than those of one.

        What is read does not depend on how polls are put together.
        """
        return [read for some in _together(polls) for read in self._read(some)]

    def _read(self, polls: Sequence[Poll]) -> Iterator[Read]:
        decoded = [*self._decoded(polls)]
        whole = pa.concat_tables([one.events for one in decoded]).combine_chunks()
        inputs, failed = self._without_failed(whole) if whole.num_rows else (self._nothing, {})
        computed = _computed(whole.num_rows, failed)
        start = 0
        for poll, one in zip(polls, decoded, strict=True):
            end = start + one.events.num_rows
            low, high = np.searchsorted(computed, (start, end)).tolist()
            of_poll = {view: rows.slice(low, high - low) for view, rows in inputs.items()}
            why = {index - start: failed[index] for index in failed if start <= index < end}
            yield Read(poll, one.events, one.at, one.rejects, of_poll, why)
            start = end

    def _decoded(self, polls: Sequence[Poll]) -> Iterator[Decoded]:
        waiting = [poll for poll in polls if poll.events is None and poll.values]
        found = iter(self._decoder.decode_together(waiting) if waiting else ())
        for poll in polls:
            if poll.events is not None:
                yield Decoded(poll.events, np.arange(poll.events.num_rows), ())
            else:
                yield next(found) if poll.values else self._empty

    def judge(self, judge: PartitionJudge, read: Read) -> Taken:
        """Judge what a poll of the partition that `judge` judges brought."""
        poll, rejects = read.poll, [*read.rejects]
        judged = judge.judge(read.events)
        for index, reason, detail in judged.rejected:
            rejects.append(Reject.of(poll, int(read.at[index]), reason, detail))
        accepted = judged.accepted
        if read.failed:
            failed = np.array([index for index in accepted.tolist() if index in read.failed], np.int64)
            rejects += [
                Reject.of(poll, int(read.at[index]), Reason.TRANSFORM, read.failed[int(index)]) for index in failed
            ]
            judge.failed_count += len(failed)
            accepted = np.setdiff1d(accepted, failed)
        events, inputs = read.events, dict(read.inputs)
        if len(accepted) < read.events.num_rows:
            computed = _computed(read.events.num_rows, read.failed)
            places = pa.array(np.searchsorted(computed, accepted))
            events = events.take(pa.array(accepted))
            inputs = {view: rows.take(places) for view, rows in inputs.items()}
        if len(accepted):
            judge.accepted_count += len(accepted)
            judge.accepted_us = max(judge.accepted_us, int(judged.times[accepted].max()))
        canaries = frozenset[int]()
        if poll.headers is not None:
            places = read.at[accepted].tolist()
            canaries = frozenset(
                int(poll.offsets[place]) for place in places if header(poll.headers[place], CANARY_HEADER) is not None
            )
        return Taken(
            self.contract.name, poll.partition, poll.partitions_count, events, inputs, tuple(rejects),
            len(judged.duplicates), judge.accepted_us, poll.caught_up_us, poll.epoch, canaries,
        )  # fmt: skip

    def _without_failed(self, events: pa.Table) -> tuple[dict[str, pa.Table], dict[int, str]]:
        """Compute every view's inputs from events on which no expression fails, and say of the others how it does."""
        inputs, failed = self._project(events)
        if failed:  # each view lacks its own only
            left = np.setdiff1d(np.arange(events.num_rows), list(failed))
            inputs, again = self._project(events.take(pa.array(left)))
            assert not again, again
        return inputs, failed

    def inputs_of(self, events: pa.Table) -> dict[str, pa.Table]:
        """Return every view's inputs from events that were accepted before.

        Raises `Refused` where an expression fails on one: it was not declared when the event was accepted.
        """
        inputs, failed = self._project(events)
        if failed:
            index, why = next(iter(sorted(failed.items())))
            place = f"{events.column(PARTITION)[index]}@{events.column(OFFSET)[index]}"
            fact = (
                f"fails on the archived event {place} of {self.contract.name}, and on {len(failed) - 1} others beside"
            )
            hint = "make it NULL where that is meant, as with TRY(…) or nullif"
            raise Refused([Problem("feature", why.partition(":")[0], fact, why, hint)])
        return inputs

    def _project(self, events: pa.Table) -> tuple[dict[str, pa.Table], dict[int, str]]:
        """Compute every view's inputs; returns them, or which events an expression failed on, and how."""
        found: dict[str, list[pa.Table]] = {view: [] for view in self._projectors}
        failed: dict[int, str] = {}
        for start in range(0, max(1, events.num_rows), _TOGETHER_MESSAGES):
            some = events.slice(start, _TOGETHER_MESSAGES)
            for view, projector in self._projectors.items():
                inputs, failures = projector.project(some)
                found[view].append(inputs)
                for index, what, error in failures:
                    failed.setdefault(start + index, f"{what}: {error}")
        return {view: pa.concat_tables(parts) for view, parts in found.items()}, failed


def _computed(events_count: int, failed: Mapping[int, str]) -> npt.NDArray[np.int64]:
    """Return the events on which no expression failed, whose inputs stand in this order."""
    return np.setdiff1d(np.arange(events_count), list(failed)) if failed else np.arange(events_count)


def _together(polls: Sequence[Poll]) -> Iterator[list[Poll]]:
    """Cut polls into runs of so many messages as SQL is given at once, or of one poll."""
    some: list[Poll] = []
    count = 0
    for poll in polls:
        if some and count + len(poll.values) > _TOGETHER_MESSAGES:
            yield some
            some, count = [], 0
        some.append(poll)
        count += len(poll.values)
    if some:
        yield some
