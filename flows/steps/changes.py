"""What an edited declaration changes, as a person thinks of it, and what each change asks for: pure.

Features are compared by what they mean (`schemas.plan.Trace`), not by their text: SQL that is written otherwise, or
takes its window from another place, is no change. `needs` says whether a change is in place at once, by making the view
anew from the event archive, or only in a new version of the view.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum

from freshet.flows.steps.estimates import words
from freshet.schemas.declaration import Declaration
from freshet.schemas.errors import listed
from freshet.schemas.expected import NOTHING, Expected
from freshet.schemas.plan import Exclude, Pipeline, Range, Rows, ViewPlan
from freshet.schemas.units import microseconds, spell
from freshet.schemas.view import Feature


class Needs(StrEnum):
    """What a change asks for."""

    NOTHING = "nothing"
    """It is in place at once: no row means anything else."""
    HISTORY = "history"
    """It is safe in place: the view is made anew from the event archive, and handed over at one commit."""
    NEW_VIEW = "new_view"
    """It is refused in place: a new version of the view stands beside the old one until readers have moved."""


class Kind(StrEnum):
    """What a change is, in a person's words."""

    VIEW_ADDED = "view added"
    VIEW_REMOVED = "view removed"
    ADDED = "feature added"
    REMOVED = "feature removed"
    MOVED = "feature moved"
    """Its `view:` is another one: it is removed there, and added here."""
    RENAMED = "feature renamed"
    TRANSFORMATION = "transformation changed"
    WINDOW = "window changed"
    """Only the frame differs."""
    DECAY = "decay changed"
    TYPE = "type changed"
    ENTITY = "entity changed"
    SOURCES = "sources changed"
    ORDER = "order of features changed"
    SPELLING = "written otherwise"
    """Features mean the same, and are computed by other SQL."""
    VERSION = "computed otherwise"
    """Nothing was edited: another version of Freshet, or of the event contract, computes the view by other SQL."""
    TTL = "ttl changed"
    DESCRIPTION = "description changed"
    EXPECTATION = "expectation changed"
    TARGET = "target changed"
    STORE = "online store changed"
    PROJECT = "project renamed"


@dataclass(frozen=True, slots=True)
class Effects:
    """What a change does to the flow's state, to both stores, and to those who read features: a sentence each."""

    state: str
    offline: str
    online: str
    readers: str


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `view` is None where it is the project's, `feature` where it is a whole view's.

    `before` and `after` are what differs, for people; of a feature that was renamed or moved, its names or its views.
    """

    kind: Kind
    view: str | None
    feature: str | None
    before: str
    after: str
    effects: Effects
    needs: Needs
    hint: str = ""


@dataclass(frozen=True)
class Compiled:
    """A declaration and what it compiles to. `digests` has those of the views that ran by it, where they are known."""

    declaration: Declaration
    pipeline: Pipeline
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def plans(self) -> dict[str, ViewPlan]:
        """The views' plans by name."""
        return {plan.view.name: plan for plan in self.pipeline.plans}

    @property
    def places(self) -> dict[str, ViewPlan]:
        """The plan that each feature is in, by its name: no two features of a project share one."""
        return {feature.name: plan for plan in self.pipeline.plans for feature in plan.view.features}


def changes_between(before: Compiled | None, after: Compiled) -> tuple[Change, ...]:
    """Return what differs, view by view in the order of `after`, then views that are gone, then the project's own.

    With nothing in force `before` is None: all views are added. A view of which the digest differs has a change that
    needs more than nothing; one of which it does not has none that needs history.
    """
    if before is None:
        return tuple(_of_added(plan) for plan in after.pipeline.plans)
    found: list[Change] = []
    for name, plan in after.plans.items():
        if name in before.plans:
            found += _of_view(before, after, before.plans[name], plan)
        else:
            found += [_of_added(plan), *_of_arriving(before, after, plan)]
    for name, plan in before.plans.items():
        if name not in after.plans:
            names = listed([one.name for one in plan.view.features])
            found.append(_change(Kind.VIEW_REMOVED, name, None, names, ""))
    return (*found, *_of_project(before.declaration, after.declaration))


def carried(before: ViewPlan, after: ViewPlan) -> Mapping[str, str]:
    """Return, for features of a view, the one of an earlier form of it that has the very same value at every instant.

    Such values may be carried on where events are gone; renamed features are among them. Nothing is the same where the
    events or entities are others.
    """
    if (before.view.sources, _entity(before)) != (after.view.sources, _entity(after)):
        return {}
    names: dict[tuple[str, ...], str] = {}
    for feature in before.view.features:
        names.setdefault(_meaning(before, feature), feature.name)
    own = {feature.name: _meaning(before, feature) for feature in before.view.features}
    made = {feature.name: _meaning(after, feature) for feature in after.view.features}
    same = {name: name if own.get(name) == meaning else names.get(meaning) for name, meaning in made.items()}
    return {name: old for name, old in same.items() if old is not None}


def said(change: Change) -> str:
    """Say a change in one line; of a transformation, what it was stands behind it.

    >>> said(_change(Kind.WINDOW, "edits_by_user", "edits_10m", "last 10m", "last 20m"))
    '~ edits_10m: window changed, from last 10m to last 20m'
    """
    feature = change.feature
    match change.kind:
        case Kind.VIEW_ADDED:
            return f"+ {change.kind}: {change.after}"
        case Kind.VIEW_REMOVED:
            return f"- {change.kind}: {change.before}"
        case Kind.ADDED:
            return f"+ {feature}: {change.after}"
        case Kind.REMOVED:
            return f"- {feature}: it was {change.before}"
        case Kind.RENAMED:
            return f"~ {change.before} is renamed to {change.after}"
        case Kind.MOVED if change.view == change.before:
            return f"- {feature} moves to view {change.after}"
        case Kind.MOVED:
            return f"+ {feature} moves here from view {change.before}"
    name = f"{feature}: " if feature else ""
    if not change.before and not change.after:
        return f"~ {name}{change.kind}"
    return f"~ {name}{change.kind}, from {change.before or 'none'} to {change.after or 'none'}"


def screen(changes: Sequence[Change]) -> list[str]:
    """Return changes as a person reads them: view by view, what differs, what it asks for, and what it does."""
    lines: list[str] = []
    for view in dict.fromkeys(change.view for change in changes):
        own = [change for change in changes if change.view == view]
        lines.append("the project" if view is None else f"feature view {view}")
        for change in own:
            lines.append(f"  {said(change)}")
            lines += [f"    Hint: {change.hint}"] if change.hint else []
        needs = max((change.needs for change in own), key=[*Needs].index)
        lines.append(f"  {_NEEDS_WORDS[needs]}")
        shown = [change.effects for change in own if change.needs is needs or needs is not Needs.NEW_VIEW]
        for part, name in (("state", "state"), ("offline", "offline store"), ("online", "online store")):
            told = dict.fromkeys(getattr(effects, part) for effects in shown)
            lines.append(f"    {name}: {'; '.join(text for text in told if text != _STAYS or len(told) == 1)}")
        for text in dict.fromkeys(effects.readers for effects in shown):
            names = [one.feature for one in own if one.effects.readers == text and one.feature]
            lines.append(f"    readers{f' of {listed(names)}' if names else ''}: {text}")
    return lines


# Views


def _of_view(before: Compiled, after: Compiled, old: ViewPlan, new: ViewPlan) -> list[Change]:
    """Return what differs in a view that both have."""
    view = new.view.name
    found: list[Change] = []
    if dict(_entity(old)) != dict(_entity(new)):
        hint = f"add the definitions once more, under new names, with `view: {_next_version(view, after)}`"
        texts = (_entity_words(old), _entity_words(new))
        found.append(_change(Kind.ENTITY, view, None, *texts, f"{hint}; let readers move, then drop the old"))
    if old.view.sources != new.view.sources:
        found.append(_change(Kind.SOURCES, view, None, listed(old.view.sources), listed(new.view.sources)))
    leaving = [
        one for one in old.view.features if one.name in after.places and after.places[one.name].view.name != view
    ]
    gone = [one for one in old.view.features if one.name not in after.places]
    come = [one for one in new.view.features if one.name not in before.places]
    renamed = _renamed(old, new, gone, come)
    found += [_moved(old, after.places[one.name], one.name, view) for one in leaving]
    found += _of_arriving(before, after, new)
    found += [
        _change(Kind.REMOVED, view, one.name, _declared(one), "") for one in gone if one.name not in renamed.values()
    ]
    kept = {one.name: one for one in old.view.features}
    for one in new.view.features:
        if one.name in renamed:
            found.append(_change(Kind.RENAMED, view, one.name, renamed[one.name], one.name))
        elif one in come:
            found.append(_change(Kind.ADDED, view, one.name, "", _declared(one)))
        earlier = kept.get(renamed.get(one.name, one.name))
        if earlier is not None:
            found += _of_feature(old, new, earlier, one, after)
    if old.view.ttl != new.view.ttl:
        texts = (_ttl(old.view.ttl), _ttl(new.view.ttl))
        found.append(_change(Kind.TTL, view, None, *texts))
    return found + _of_digest(before, old, new, found, renamed)


def _of_digest(
    before: Compiled, old: ViewPlan, new: ViewPlan, found: Sequence[Change], renamed: Mapping[str, str]
) -> list[Change]:
    """Say why a view's digest differs though no change so far says it."""
    view = new.view.name
    if before.digests.get(view, old.digest) == new.digest or any(one.needs != Needs.NOTHING for one in found):
        return []
    names = [renamed.get(one.name, one.name) for one in new.view.features]
    order = [one.name for one in old.view.features]
    if names != order:
        return [_change(Kind.ORDER, view, None, listed(order), listed([one.name for one in new.view.features]))]
    return [_change(Kind.VERSION if old.digest == new.digest else Kind.SPELLING, view, None, "", "")]


def _of_added(plan: ViewPlan) -> Change:
    return _change(Kind.VIEW_ADDED, plan.view.name, None, "", listed([one.name for one in plan.view.features]))


def _of_arriving(before: Compiled, after: Compiled, plan: ViewPlan) -> Iterator[Change]:
    """Return what differs in the features of a view that were in another one."""
    for one in plan.view.features:
        old = before.places.get(one.name, plan)
        if old.view.name == plan.view.name:
            continue
        yield _moved(old, plan, one.name, plan.view.name)
        earlier = next(feature for feature in old.view.features if feature.name == one.name)
        for change in _of_feature(old, plan, earlier, one, after):
            moved = replace(_EFFECTS[Kind.MOVED], readers="find values of the new type in the new view")
            is_type = change.kind is Kind.TYPE
            yield replace(change, effects=moved, needs=Needs.HISTORY, hint="") if is_type else change


def _moved(old: ViewPlan, new: ViewPlan, feature: str, view: str) -> Change:
    """Say in `view`, which is that of one of the plans, that a feature moves."""
    made = _change(Kind.MOVED, view, feature, old.view.name, new.view.name)
    if _entity(old) == _entity(new):
        return made
    readers = f"ask {new.view.name} for it, by {_entity_words(new)} instead of {_entity_words(old)}"
    return replace(made, effects=replace(made.effects, readers=readers))


# Features


def _of_feature(old: ViewPlan, new: ViewPlan, earlier: Feature, now: Feature, after: Compiled) -> Iterator[Change]:
    """Return what differs in a feature that both have, by its name or renamed."""
    view, name = new.view.name, now.name
    if earlier.dtype != now.dtype:
        hint = f"add it as {name}_v2 with `view: {_next_version(view, after)}` and its new type"
        hint = f"{hint}; let readers move, then drop {name}"
        yield _change(Kind.TYPE, view, name, earlier.dtype.name, now.dtype.name, hint)
    was, made = old.oracle.traces[earlier.name], new.oracle.traces[name]
    if was.shape != made.shape:
        same = earlier.transformation.split() == now.transformation.split()
        texts = (was.shape, made.shape) if same else (_one_line(earlier.transformation), _one_line(now.transformation))
        yield _change(Kind.TRANSFORMATION, view, name, *texts)
    elif (frames := [*map(_undecayed, was.frames)]) != (others := [*map(_undecayed, made.frames)]):
        pairs = [pair for pair in zip(frames, others, strict=True) if pair[0] != pair[1]]
        yield _change(
            Kind.WINDOW,
            view,
            name,
            *(listed([*dict.fromkeys(map(_frame_words, each))]) for each in zip(*pairs, strict=True)),
        )
    elif was.frames != made.frames:
        changed = _change(Kind.DECAY, view, name, _decay_words(was.frames), _decay_words(made.frames))
        # another feature of the view may have a frame with the same ticks: then rows stand where they stood
        yield changed if old.digest != new.digest else replace(changed, needs=Needs.NOTHING, effects=_SAME_TICKS)
    if earlier.description != now.description:
        yield _change(Kind.DESCRIPTION, view, name, earlier.description, now.description)
    if earlier.expected != now.expected:
        yield _change(Kind.EXPECTATION, view, name, _expected(earlier.expected), _expected(now.expected))


def _renamed(old: ViewPlan, new: ViewPlan, gone: Sequence[Feature], come: Sequence[Feature]) -> dict[str, str]:
    """Return the names that features had before; where two could be meant, neither is."""
    meant = [_meaning(old, one) for one in gone]
    made = [_meaning(new, one) for one in come]
    return {
        one.name: gone[meant.index(meaning)].name
        for one, meaning in zip(come, made, strict=True)
        if meant.count(meaning) == made.count(meaning) == 1
    }


def _meaning(plan: ViewPlan, feature: Feature) -> tuple[str, ...]:
    """Return what two features of the same events and entity share if, and only if, their values are the same."""
    trace = plan.oracle.traces[feature.name]
    return (feature.dtype.name, trace.shape, *(repr(_undecayed(frame)) for frame in trace.frames))


def _undecayed(frame: Range | Rows) -> Range | Rows:
    return replace(frame, decay_us=None) if isinstance(frame, Range) else frame


# The project


def _of_project(before: Declaration, after: Declaration) -> Iterator[Change]:
    """Return what differs beside the views."""
    if before.project != after.project:
        yield _change(Kind.PROJECT, None, None, before.project, after.project)
    if before.infrastructure.onlineStore != after.infrastructure.onlineStore:
        yield _change(Kind.STORE, None, None, "", "")  # a URL may hold a password
    for name in ("onlineLatency", "offlineVolume", "freshnessTarget"):
        texts = [str(getattr(one.servingRequirements, name)) for one in (before, after)]
        if texts[0] != texts[1]:
            yield _change(Kind.TARGET, None, name, *texts)


# Words


_VERSIONED = re.compile(r"(.+)_v(\d+)")
_NEEDS_WORDS: Mapping[Needs, str] = {
    Needs.NOTHING: "in place, at once",
    Needs.HISTORY: "safe in place: the view is made anew from the event archive, and handed over at one commit",
    Needs.NEW_VIEW: "refused in place: needs a new version of the view",
}
_ANEW = "is made anew from the event archive, beside the one at work, which goes on until the hand-over"
_ROWS = "its rows are made anew from the archived events; older ones keep what means the same, and have NULL else"
_OTHER = "a model that learnt the old ones has not seen such"
_WRITTEN = "each entity's newest row is written anew at the hand-over"
_STAYS = "stays as it is"
_REFUSED = "stays as it is: `freshet apply` refuses the change"
_SAME_TICKS = Effects(_STAYS, _STAYS, _STAYS, "see nothing of it: other features have rows at the same instants")

_HISTORY: Mapping[Kind, str] = {
    Kind.ADDED: "find it from the hand-over on",
    Kind.REMOVED: "are told that it is not known, from the hand-over on",
    Kind.MOVED: "ask the other view for it from the hand-over on",
    Kind.RENAMED: "ask for it by its new name from the hand-over on; its values are the same",
    Kind.TRANSFORMATION: f"get values of another meaning from the hand-over on: {_OTHER}",
    Kind.WINDOW: f"get values of another window from the hand-over on: {_OTHER}",
    Kind.DECAY: "get the same values at the same instants; rows stand at other ones between events",
    Kind.SOURCES: "get values of other events from the hand-over on",
    Kind.ORDER: "get the same values",
    Kind.SPELLING: "get the same values",
    Kind.VERSION: "get what this version computes, which may differ where CHANGELOG says so",
}
_EFFECTS: Mapping[Kind, Effects] = {
    **{kind: Effects(_ANEW, _ROWS, _WRITTEN, readers) for kind, readers in _HISTORY.items()},
    Kind.REMOVED: Effects(
        _ANEW, _ROWS, f"{_WRITTEN}, and its field is deleted", _HISTORY[Kind.REMOVED],
    ),
    Kind.VIEW_ADDED: Effects(
        "is made from the event archive", "its rows are made from the archived events", "is filled at the hand-over",
        "find it from the hand-over on",
    ),
    Kind.VIEW_REMOVED: Effects(
        "is dropped", "its folder stays where it is, and is added to no more",
        "its values are deleted once those who read could hear of it",
        "are told that it is not known, by Feast as by the server",
    ),
    Kind.TYPE: Effects(_REFUSED, _REFUSED, _REFUSED, "would get values that they cannot decode"),
    Kind.ENTITY: Effects(_REFUSED, _REFUSED, _REFUSED, "would ask by keys that the view does not have"),
    Kind.TTL: Effects(
        _STAYS, _STAYS, "a row has the new ttl from its next write on, or from `freshet repair`",
        "find rows of other ages: Feast's point-in-time joins look back as far as the ttl",
    ),
    Kind.DESCRIPTION: Effects(_STAYS, _STAYS, _STAYS, "find the new words in Feast's registry"),
    Kind.EXPECTATION: Effects(
        _STAYS, _STAYS, _STAYS, "get the same values; the validator judges them by it once it is started again",
    ),
    Kind.TARGET: Effects(
        _STAYS, _STAYS, _STAYS, "get the same values; alerts, runbooks and dashboards are written anew",
    ),
    Kind.STORE: Effects(
        _STAYS, _STAYS, "the other store is filled from the newest offline rows when the materializer is started again",
        "must be pointed to the other store, too",
    ),
    Kind.PROJECT: Effects(
        _STAYS, _STAYS, "its keys have the project's name: they are filled anew when the materializer is started again",
        "must ask by the new name; Kafka's consumer group and the alerts have it, too",
    ),
}  # fmt: skip
_NEEDS: Mapping[Kind, Needs] = {
    **dict.fromkeys(_HISTORY, Needs.HISTORY),
    Kind.VIEW_ADDED: Needs.HISTORY,
    Kind.TYPE: Needs.NEW_VIEW,
    Kind.ENTITY: Needs.NEW_VIEW,
}


def _change(kind: Kind, view: str | None, feature: str | None, before: str, after: str, hint: str = "") -> Change:
    return Change(kind, view, feature, before, after, _EFFECTS[kind], _NEEDS.get(kind, Needs.NOTHING), hint)


def _entity(plan: ViewPlan) -> list[tuple[str, str]]:
    return [(column.name, str(column.type)) for column in plan.view.entity]


def _entity_words(plan: ViewPlan) -> str:
    return listed([f"{name} {kind}" for name, kind in _entity(plan)])


def _declared(feature: Feature) -> str:
    return f"{feature.dtype.name}, {_one_line(feature.transformation)}"


def _one_line(sql: str) -> str:
    return " ".join(sql.split())


def _frame_words(frame: Range | Rows) -> str:
    """Say a frame; one that leaves something out, with what.

    >>> _frame_words(Rows(9, exclude=Exclude.CURRENT_ROW))
    'last 10 rows without the current row'
    """
    left = "" if frame.exclude is Exclude.NOTHING else f" without the {frame.exclude.lower()}"
    return f"{words(frame)}{left}"


def _decay_words(frames: Sequence[Range | Rows]) -> str:
    """Say at which intervals rows follow frames by time alone.

    >>> _decay_words([Range(9_000_000, decay_us=1_000_000), Range(9_000_000), Range(9_000_000, decay_us=1)])
    'every 1s, off, at once'
    """
    ranges = [frame for frame in frames if isinstance(frame, Range)]
    spelled = {None: "off", 1: "at once"}
    steps = [frame.decay_us for frame in ranges]
    return listed([*dict.fromkeys(spelled.get(us) or f"every {spell(microseconds(us or 0))}" for us in steps)])


def _ttl(length: timedelta) -> str:
    return spell(length) if length else ""


def _expected(expected: Expected) -> str:
    """Say an expectation; of a distribution only that there is one.

    >>> _expected(Expected(0, 1, nulls=0.5)), _expected(NOTHING)
    ('minimum 0, maximum 1, nulls 0.5', '')
    """
    found = []
    for name in Expected.__dataclass_fields__:
        value = getattr(expected, name)
        if value != getattr(NOTHING, name):
            found.append(
                f"{value.distance} of a distribution below {value.limit}"
                if name == "distribution"
                else f"{name} {value}"
            )
    return ", ".join(found)


def _next_version(view: str, known: Compiled) -> str:
    """Return what the next version of a view may be called."""
    found = _VERSIONED.fullmatch(view)
    stem, number = (found[1], int(found[2])) if found else (view, 1)
    return next(name for count in itertools.count(number + 1) if (name := f"{stem}_v{count}") not in known.plans)
