"""The validator's eyes: every view, looked at round after round; an outage makes a look without frames."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import pandas as pd

from freshet.flows.archives import indexes_of
from freshet.flows.canaries import Canaries
from freshet.flows.steps import frames
from freshet.flows.steps.freshness import Freshness, Progress, Reading, Source
from freshet.flows.steps.watch import Entity, unlike
from freshet.flows.watch import Outside, Sampling, Watch
from freshet.schemas.errors import FreshetError
from freshet.schemas.finding import Frame
from freshet.schemas.ledger import Ledger
from freshet.schemas.plan import Pipeline, ViewPlan
from freshet.schemas.view import StoredRow, View


@dataclass(frozen=True)
class Seen:
    """What a round saw of a view: frames to judge, and why there are none, or not all.

    `waiting_count` entities cannot be judged yet; of `undecided_count` partitions it will show how they keep up.
    `freshness` is all that was seen of that so far; None if this round saw nothing of it. `void` says why the look says
    nothing of the view's rows: they were, or became, those of another declaration.
    """

    view: View
    at: datetime
    frames: Mapping[Frame, pd.DataFrame] = field(default_factory=dict)
    error: str = ""
    waiting_count: int = 0
    undecided_count: int = 0
    freshness: Reading | None = None
    void: str = ""


class Observer:
    """Looks at every view, round after round."""

    def __init__(
        self,
        pipeline: Pipeline,
        outside: Outside,
        sampling: Sampling,
        freshness: Freshness,
        canaries: Canaries | None = None,
    ) -> None:
        self._outside, self._sampling, self.freshness, self._canaries = outside, sampling, freshness, canaries
        self._begun_at: datetime | None = None
        self._indexes = indexes_of(pipeline.plans, outside.offline, sampling.budget)
        self.watches = [self._watch(plan) for plan in pipeline.plans]
        self._anew_counts = dict[str, int]()
        """How often each view's rows had been made anew when they were looked at last."""

    def _watch(self, plan: ViewPlan) -> Watch:
        return Watch(plan, self._outside, self._sampling, self._indexes)

    def look(self, number: int, *, choose: bool = True) -> list[Seen]:
        """Do one round; what cannot be read makes an error of the views concerned. `choose` more entities, or not."""
        at = self._outside.now()
        try:
            progress = self._outside.progress()
            self.freshness.look(progress, at, self._outside.now())
            ledger = self._outside.ledger.read()
            if ledger is None:
                return [self._unwritten(watch.view, at) for watch in self.watches]
            void = self._void(ledger)
            counted = self._outside.online.counted_writes()
            online = frames.store(ledger.online_writes_count, counted)
            lost = counted < ledger.online_writes_count
            new, errors, newest = self._list_parts(ledger, void)
            archives = self._archives(newest, progress, errors)
            again = dict[str, Mapping[Entity, StoredRow | None]]()
            for watch in self.watches:
                try:
                    if watch.view.name in new:
                        again[watch.view.name] = self._see(
                            watch, new[watch.view.name], at, number, lost=lost, choose=choose
                        )
                except FreshetError as error:
                    errors[watch.view.name] = str(error)
            ends = self._outside.ends()
            recounted = self._outside.online.counted_writes()
            if recounted < ledger.online_writes_count:  # it lost rows while they were looked at
                online = frames.store(ledger.online_writes_count, recounted)
                again = {name: {} for name in again}
                for watch in self.watches:
                    watch.forget()
            if self._canaries is not None:
                self._canaries.send(ledger)
            stores = {name: {Frame.STORE: online, **own} for name, own in archives.items()}
            seen = [
                Seen(watch.view, at, error=errors.get(watch.view.name, ""))
                if watch.view.name in errors or watch.view.name in void
                else self._seen(watch, at, stores[watch.view.name], again[watch.view.name], ends)
                for watch in self.watches
            ]
            return self._without_void(seen, {**self._void(self._outside.ledger.read() or ledger), **void}, at)
        except FreshetError as error:
            return [Seen(watch.view, at, error=str(error)) for watch in self.watches]

    def close(self) -> None:
        """Let go of all connections."""
        self._outside.close()

    def _void(self, ledger: Ledger) -> dict[str, str]:
        """Return why a look says nothing of some views' rows; of views whose rows may be judged, nothing.

        The ledger was read before. A change replaces it first, and then the folder of rows that it makes anew.
        """
        found = dict[str, str]()
        for watch in self.watches:
            name, count = watch.view.name, self._outside.offline.anew_count(watch.view.name)
            is_anew = self._anew_counts.get(name, count) != count
            self._anew_counts[name] = count
            why = unlike(watch.plan, ledger) or ("its rows were made anew" if is_anew else "")
            if why:
                found[name] = why
        return found

    def _without_void(self, seen: Sequence[Seen], void: Mapping[str, str], at: datetime) -> list[Seen]:
        """Return what was seen, of void looks only what Kafka tells; nothing that they saw is remembered."""
        self.watches = [self._watch(watch.plan) if watch.view.name in void else watch for watch in self.watches]
        return [
            replace(self._unwritten(one.view, at), void=void[one.view.name]) if one.view.name in void else one
            for one in seen
        ]

    def _list_parts(self, ledger: Ledger, void: Collection[str]) -> tuple[dict[str, list[str]], dict[str, str], Ledger]:
        """List the parts of every view, but of those that are void, between two readings of the ledger.

        Return each's new parts, what went wrong, and the ledger as it was read last.
        """
        new, errors = dict[str, list[str]](), dict[str, str]()
        for index in self._indexes.values():
            index.begin()
        for watch in [watch for watch in self.watches if watch.view.name not in void]:
            try:
                new[watch.view.name], ledger = watch.list_parts(ledger)
            except FreshetError as error:
                errors[watch.view.name] = str(error)
        return new, errors, ledger

    def _archives(
        self, before: Ledger, progress: Mapping[Source, Progress], errors: dict[str, str]
    ) -> dict[str, dict[Frame, pd.DataFrame]]:
        """Hold each stream's archive against the ledger; no frame of a view of whose stream nothing can be said now."""
        for watch in self.watches:
            try:
                for stream in watch.view.sources:
                    self._indexes[stream].learn()
            except FreshetError as error:
                errors.setdefault(watch.view.name, str(error))
        archives = {watch.view.name: dict[Frame, pd.DataFrame]() for watch in self.watches}
        if self._outside.ledger.read() != before:
            return archives
        lines = {stream: index.conserved(before, progress) for stream, index in self._indexes.items()}
        for watch in self.watches:
            own = [lines[stream] for stream in watch.view.sources]
            if None not in own and any(own):
                archives[watch.view.name][Frame.ARCHIVE] = frames.archive(line for one in own for line in one or ())
        return archives

    def _see(
        self, watch: Watch, new: Sequence[str], at: datetime, number: int, *, lost: bool, choose: bool
    ) -> Mapping[Entity, StoredRow | None]:
        if lost:
            watch.forget()
            return {}
        if self._canaries is not None:
            watch.look_at(self._canaries.probes(watch.view), at)
        again = watch.look_again()
        if choose:
            watch.begin(new, number)
        return again

    def _seen(
        self,
        watch: Watch,
        at: datetime,
        stores: Mapping[Frame, pd.DataFrame],
        again: Mapping[Entity, StoredRow | None],
        ends: Mapping[str, int],
    ) -> Seen:
        view = watch.view
        own = {key: end for key, end in ends.items() if key.rpartition("/")[0] in view.sources}
        try:
            rows = watch.frames()
            watch.looked_again(again, own)
            made = {
                Frame.SCHEMA: frames.schemas(view, watch.schemas()),
                Frame.PARTS: frames.parts(watch.part_lines()),
                **stores,
                **rows,
                **self._freshness(view),
                **self._canary_frame(watch),
            }
        except FreshetError as error:
            return Seen(view, at, error=str(error))
        return replace(self._looked(view, at, made, watch.waiting_count), error=watch.trouble)

    def _looked(self, view: View, at: datetime, made: Mapping[Frame, pd.DataFrame], waiting_count: int = 0) -> Seen:
        reading = self.freshness.reading(view.sources)
        return Seen(view, at, made, "", waiting_count, self._undecided_count(view, at), reading)

    def _unwritten(self, view: View, at: datetime) -> Seen:
        """Look at nothing but Kafka, as before the first commit."""
        return self._looked(view, at, self._freshness(view))

    def _freshness(self, view: View) -> dict[Frame, pd.DataFrame]:
        return {Frame.FRESHNESS: frames.freshness(self.freshness.lines(view.sources))}

    def _canary_frame(self, watch: Watch) -> dict[Frame, pd.DataFrame]:
        if self._canaries is None or not watch.canary_lines:
            return {}
        self._canaries.judged(watch.view, watch.canary_lines)
        return {Frame.CANARIES: frames.canaries(watch.canary_lines)}

    def _undecided_count(self, view: View, at: datetime) -> int:
        """Of a partition that is undecided after the limit, nothing more is to be expected."""
        self._begun_at = self._begun_at or at
        return self.freshness.undecided_count(view.sources) if at - self._begun_at < self._sampling.limit else 0
