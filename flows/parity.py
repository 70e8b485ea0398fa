"""What Feast itself makes of a few rows of a view, now and then: what a model is served, beside what a trainer gets.

The only leg that asks as Feast's clients do. It sees a registry that is not as declared, and what Feast reads otherwise
than we do: which of several versions, what is too old, which value. So it takes rows that our own readers find alike in
both stores; what they do not, other checks tell.

One version is compared, and nothing is a race: rows are online before they are committed, and an online row never goes
back. So a row that is online at the second look, and still after Feast was asked, was the newest all the time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from freshet.flows.steps import frames
from freshet.flows.steps.watch import Entity, Found, Judgeable, covering, newest_of, place
from freshet.schemas.errors import FreshetError
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.finding import Frame
from freshet.schemas.part import PartSummary
from freshet.schemas.registration import Entry
from freshet.schemas.view import VERSION, StoredRow, View

EVERY = timedelta(minutes=1)
ROWS_COUNT, PARTS_COUNT = 20, 200
"""How many rows of a view Feast is asked for at a time, and how many parts it is shown for that."""

Row = Mapping[str, Any]


class Client(Protocol):
    """Feast, as a client of the project has it."""

    def registration(self, view: View) -> list[Entry]:
        """Return every entry of a view as it is declared and as it is registered."""

    def online(self, view: View, entities: Sequence[Entity]) -> list[StoredRow | None]:
        """Return what is served for each entity, in order."""

    def history(self, view: View, entities: Sequence[Entity], at: datetime, parts: Sequence[str]) -> list[Row]:
        """Return the features of some parts for each entity as of a time, in order."""


class Online(Protocol):
    """What rows are served from, by our own reader."""

    def read(self, view: View, entities: Sequence[Entity]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""


class Offline(Protocol):
    """What keeps rows for ever, by our own reader."""

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some."""


@dataclass
class Parity:
    """Asks Feast about one view, `every` so often; of a view without a row to ask for, as soon as there is one."""

    view: View
    client: Callable[[], Client]
    online: Online
    offline: Offline
    now: Callable[[], datetime]
    is_in_force: Callable[[], bool] = lambda: True
    """Whether Feast is to know this very view: not while a declaration is being applied, which tells it last."""
    every: timedelta = EVERY
    trouble: str = ""
    """Why Feast could not be asked, until it could be."""
    _asked_at: datetime | None = None

    def frames(self, looked: Iterable[Judgeable], parts: Mapping[str, PartSummary]) -> dict[Frame, pd.DataFrame]:
        """Ask for some rows that were found offline in these parts, if it is time; return nothing if it is not.

        What goes wrong is `trouble`, and tried again at the next call.
        """
        now = self.now()
        if self._asked_at is not None and timedelta(0) <= now - self._asked_at < self.every:
            return {}
        try:
            rows, shown = self._chosen(looked, parts, now)
            if not rows or not self.is_in_force():
                return {}
            client = self.client()
            entries = client.registration(self.view)
            made = {Frame.REGISTRY: frames.registry(entries)}
            if all(entry.is_declared for entry in entries):  # else its answers are those to another question
                answers = self._asked(client, rows, shown)
                if answers.empty:  # none stood still meanwhile
                    return {}
                made[Frame.SERVED] = answers
            if not self.is_in_force():
                return {}
        except FreshetError as error:
            self.trouble = str(error)
            return {}
        self._asked_at, self.trouble = now, ""
        return made

    def _chosen(
        self, looked: Iterable[Judgeable], parts: Mapping[str, PartSummary], now: datetime
    ) -> tuple[list[Row], list[str]]:
        """Return offline rows that are online, too, the newest of their entities; and the parts they stand in."""
        found = [one.offline.row for one in looked if one.offline and _stood(one)]
        standing = self._standing([row for row in found if row[EVENT_TIME] <= now])
        rows, shown = list[Row](), dict[str, None]()
        for row in standing:
            more = {**shown, **dict.fromkeys(covering(parts, [row[EVENT_TIME]]))}
            if len(more) <= PARTS_COUNT:
                rows, shown = [*rows, row], more
            if len(rows) == ROWS_COUNT:
                break
        names = [*self.view.entity_names, EVENT_TIME, VERSION]
        tables = (self.offline.read_parts(self.view.name, [part], names) for part in shown)
        newest = newest_of(self.view, tables, map(self._entity, rows))
        return [row for row in rows if newest[self._entity(row)] == (row[EVENT_TIME], row[VERSION])], [*shown]

    def _asked(self, client: Client, rows: Sequence[Row], shown: Sequence[str]) -> pd.DataFrame:
        at, entities = self.now(), [self._entity(row) for row in rows]
        served = client.online(self.view, entities)
        history = client.history(self.view, entities, at, shown)
        still = {self._entity(row) for row in self._standing(rows)}
        answers = zip(rows, served, history, strict=True)
        return frames.served(self.view, at, [one for one in answers if self._entity(one[0]) in still])

    def _standing(self, rows: Sequence[Row]) -> list[Row]:
        """Return those rows that are online now, with the same values, and have not outlived their ttl since."""
        stored = self.online.read(self.view, [self._entity(row) for row in rows])
        same = [row for row, own in zip(rows, stored, strict=True) if own is not None and _is_same(own, row)]
        now, ttl = self.now(), self.view.ttl or timedelta.max
        return [row for row in same if now - row[EVENT_TIME] <= ttl]

    def _entity(self, row: Row) -> Entity:
        return tuple(row[name] for name in self.view.entity_names)


def _stood(one: Judgeable) -> bool:
    """Say whether a row that was found offline was the same at both looks."""
    return one.found is Found.FOUND and place(one.ticket.first) == place(one.ticket.second)


def _is_same(online: StoredRow, offline: Row) -> bool:
    if place(online) != (offline[EVENT_TIME], offline[VERSION]):
        return False
    return all(frames.comparable(value) == frames.comparable(offline[name]) for name, value in online.features.items())
