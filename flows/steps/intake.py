"""From a poll to what the windows need: decode, judge, compute the row-level parts. One stream at a time.

An event is accepted by all views of its stream or by none, so a row-level expression that fails on an event rejects it
everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.decode import Decoder
from freshet.flows.steps.sql import Projector
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import CANARY_HEADER, EVENT_TIME, OFFSET, PARTITION, Contract
from freshet.schemas.plan import ViewPlan
from freshet.schemas.poll import Poll
from freshet.schemas.record import header
from freshet.schemas.rejects import Reason, Reject


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one poll: accepted events, each view's inputs from them, and the rest.

    `newest_us` is the greatest event time accepted of the partition so far, `caught_up_us` and `epoch` as in `Poll`.
    `canaries_count` of the accepted events are the validator's.
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
    canaries_count: int = 0


class Intake:
    """Takes the polls of one stream."""

    def __init__(self, contract: Contract, plans: Sequence[ViewPlan]) -> None:
        self.contract = contract
        self._decoder = Decoder(contract)
        self._nothing = {plan.view.name: plan.inputs.empty_table() for plan in plans}
        self._projectors = {plan.view.name: Projector(plan, contract.name) for plan in plans}

    def take(self, judge: PartitionJudge, poll: Poll) -> Taken:
        """Take one poll of the partition that `judge` judges."""
        if not poll.values:  # it only says how far the partition is
            return Taken(
                self.contract.name, poll.partition, poll.partitions_count, self.contract.schema.empty_table(),
                self._nothing, (), 0, judge.accepted_us, poll.caught_up_us, poll.epoch,
            )  # fmt: skip
        decoded = self._decoder.decode(poll)
        judged = judge.judge(decoded.events)
        rejects = [*decoded.rejects]
        for index, reason, detail in judged.rejected:
            rejects.append(Reject.of(poll, int(decoded.at[index]), reason, detail))
        events, at = decoded.events.take(pa.array(judged.accepted)), decoded.at[judged.accepted]
        inputs, failed = self._project(events)
        if failed:
            rejects += [
                Reject.of(poll, int(at[index]), Reason.TRANSFORM, detail) for index, detail in sorted(failed.items())
            ]
            judge.failed_count += len(failed)
            left = np.setdiff1d(np.arange(events.num_rows), list(failed))
            events, at = events.take(pa.array(left)), at[left]
            inputs = self.inputs_of(events)
        if events.num_rows:
            judge.accepted_count += events.num_rows
            judge.accepted_us = max(judge.accepted_us, pc.max(events.column(EVENT_TIME)).cast(pa.int64()).as_py())
        return Taken(
            self.contract.name, poll.partition, poll.partitions_count, events, inputs, tuple(rejects),
            len(judged.duplicates), judge.accepted_us, poll.caught_up_us, poll.epoch,
            0 if poll.headers is None else sum(header(poll.headers[index], CANARY_HEADER) is not None for index in at),
        )  # fmt: skip

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
        inputs: dict[str, pa.Table] = {}
        failed: dict[int, str] = {}
        for view, projector in self._projectors.items():
            inputs[view], failures = projector.project(events)
            for index, what, error in failures:
                failed.setdefault(index, f"{what}: {error}")
        return inputs, failed
