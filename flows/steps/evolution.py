"""Whether a contract has evolved as it promises: held against the snapshots of its versions, and their samples. Pure.

A snapshot is a version's JSON Schema, committed when the version was new, and changed no more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freshet.flows.steps.compatibility import Gap, Rule, gaps
from freshet.flows.steps.decode import Decoder
from freshet.flows.steps.versions import Versions
from freshet.schemas.errors import listed
from freshet.schemas.event import Compatibility, Contract
from freshet.schemas.poll import Poll

Snapshots = Mapping[int, Mapping[str, Any]]
"""By version, its JSON Schema."""
Samples = Mapping[int, Mapping[str, bytes]]
"""By version, its example messages by file; the name says whether one is good-… or bad-…."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_WORDS_OF_PEOPLE = {"title", "description", "examples", "$schema", "$comment"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that keeps a contract from what it promises: where, by which rule, and what to do.

    >>> print(Finding("visits", "$.device", "field_required", "version 2 needs it", "give it a default"))
    visits $.device: version 2 needs it [field_required]. Hint: give it a default
    """

    stream: str
    path: str
    rule: str
    fact: str
    fix: str

    def __str__(self) -> str:
        return f"{self.stream} {self.path}: {self.fact} [{self.rule}]. Hint: {self.fix}"


def json_schema(contract: Contract) -> dict[str, Any]:
    """Return the JSON Schema of a contract's events, as a reader takes them."""
    made = {"$schema": _DIALECT, **contract.model.model_json_schema(mode="validation")}
    return made | {"x-freshet-stream": contract.name, "x-freshet-version": contract.stream.version}


def findings(
    contract: Contract, snapshots: Snapshots, samples: Samples, mode: Compatibility | None = None
) -> list[Finding]:
    """Return all that is wrong with a contract's evolution; `mode` in place of what its stream says."""
    mode = contract.stream.compatibility if mode is None else mode
    return [
        *_of_snapshots(contract, snapshots),
        *incompatible(contract, snapshots, mode),
        *_of_samples(contract, samples),
    ]


def incompatible(contract: Contract, snapshots: Snapshots, mode: Compatibility) -> list[Finding]:
    """Return where the contract and its older versions do not read each other's events, as the mode wants it."""
    newest = contract.stream.version
    found: list[Finding] = []
    for version in _older(contract, snapshots, mode):
        if mode.is_backward:
            found += _backward(contract, snapshots, version)
        if mode.is_forward:
            gone = gaps(snapshots[version], json_schema(contract))
            found += [_finding(contract, gap, version, newest, _FORWARD[gap.rule]) for gap in gone]
    return found


def unread(contract: Contract, snapshots: Snapshots) -> list[Finding]:
    """Return where a contract does not read events that its snapshots allow; nothing if its mode does not want it to.

    A version that was changed in place is held against its own snapshot, too.
    """
    mode, newest = contract.stream.compatibility, contract.stream.version
    if not mode.is_backward:
        return []
    found = [one for version in _older(contract, snapshots, mode) for one in _backward(contract, snapshots, version)]
    words = {"R": f"version {newest} as it is now", "W": "as its snapshot has it, it"}
    changed = gaps(json_schema(contract), snapshots[newest]) if newest in snapshots else []
    return found + [
        Finding(contract.name, gap.path, gap.rule.value, _filled(gap.fact, words), raised(newest)) for gap in changed
    ]


def _older(contract: Contract, snapshots: Snapshots, mode: Compatibility) -> list[int]:
    """Return the older versions that a mode is about."""
    older = sorted(version for version in snapshots if version < contract.stream.version)
    return older if mode.is_transitive else older[-1:]


def _backward(contract: Contract, snapshots: Snapshots, version: int) -> list[Finding]:
    """Return where the newest version does not read an old one; what an upcast makes of it, samples have to show."""
    newest, versions = contract.stream.version, Versions(contract)
    if version not in versions.known:
        first = min(version, min(versions.known) - 1)
        fix = f"write `upcasts` from version {first} on, {{{first}: as_is}} if version {first + 1} reads it as it is"
        fact = f"version {newest} does not read events of version {version}, which becomes `unknown_version`"
        return [Finding(contract.name, "upcasts", "version_not_read", fact, fix)]
    if versions.steps(version):
        return []
    gone = gaps(json_schema(contract), snapshots[version])
    return [_finding(contract, gap, newest, version, _BACKWARD[gap.rule]) for gap in gone]


def _finding(contract: Contract, gap: Gap, reader: int, writer: int, fix: str) -> Finding:
    words = {"R": f"version {reader}", "W": f"version {writer}"}
    return Finding(contract.name, gap.path, gap.rule.value, _filled(gap.fact, words), _filled(fix, words))


def _filled(text: str, words: Mapping[str, str]) -> str:
    """Fill in who reads and who writes; what values a contract has is left as it is."""
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    return text


_UPCAST = "or write an upcast from {W} that makes it so"
_BACKWARD = {
    Rule.FIELD_REQUIRED: f"give the field a default, {_UPCAST}",
    Rule.FIELD_REFUSED: f"let the model ignore other fields (extra='ignore'), {_UPCAST}",
    Rule.TYPE_NARROWED: f"take both types, give the new field another name, {_UPCAST}",
    Rule.VALUE_REMOVED: f"keep the value, {_UPCAST}",
    Rule.BOUND_TIGHTENED: f"keep the wider bound, {_UPCAST}",
    Rule.TEXT_NARROWED: f"keep what was allowed, {_UPCAST}",
    Rule.NOT_COMPARABLE: f"say it by types, bounds and values, {_UPCAST}",
}
_FORWARD = {
    Rule.FIELD_REQUIRED: "keep the field, and keep it required, as long as {R} is read by anybody",
    Rule.FIELD_REFUSED: "leave the field out until nobody reads by {R} any more",
    Rule.TYPE_NARROWED: "keep the type, and put the new one into a field of another name",
    Rule.VALUE_REMOVED: "leave the value out until nobody reads by {R} any more, or use a new field",
    Rule.BOUND_TIGHTENED: "keep to the bound of {R}, or use a new field",
    Rule.TEXT_NARROWED: "keep to what {R} allows, or use a new field",
    Rule.NOT_COMPARABLE: "say it by types, bounds and values in a version from which on this is checked",
}


def _of_snapshots(contract: Contract, snapshots: Snapshots) -> Iterator[Finding]:
    """Tell of versions whose snapshot lacks, differs, or is of times to come."""
    name, newest = contract.name, contract.stream.version
    path = f"schemas/snapshots/{name}"
    if newest not in snapshots:
        fix = f"run `freshet schema snapshot --stream {name}`, and commit what it writes"
        yield Finding(name, f"{path}/{newest}.json", "no_snapshot", f"version {newest} has no snapshot", fix)
    elif not is_same(snapshots[newest], json_schema(contract)):
        changed = _changed(snapshots[newest], json_schema(contract))
        fact = f"version {newest} is not what its snapshot says; it differs in {changed}"
        yield Finding(name, f"{path}/{newest}.json", "changed_in_place", fact, raised(newest))
    for version in sorted(version for version in snapshots if version > newest):
        fact, fix = f"there is a snapshot of version {version}, and the contract is version {newest}", "set `version`"
        yield Finding(name, f"{path}/{version}.json", "newer_snapshot", fact, f"{fix} to it, or delete the snapshot")
    for version in contract.stream.upcasts:
        if version not in snapshots:
            fact = f"version {version} has an upcast and no snapshot"
            fix = "bring it back from version control: what nobody knows cannot be checked"
            yield Finding(name, f"{path}/{version}.json", "no_snapshot", fact, fix)


def raised(version: int) -> str:
    """Return what to do about a contract that was changed without a new version."""
    return (
        f"set `version={version + 1}`, and `upcasts` with one from {version} (`as_is`, if events of version {version}"
        " are read as they are); or take the change back"
    )


def is_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Say whether two schemas tell programs the same, even if another pydantic spells it otherwise.

    >>> const, enum = ({"type": "object", "properties": {"v": {key: value}}} for key, value in
    ...                (("const", 1), ("enum", [1])))
    >>> is_same(const, enum), is_same(const, {"type": "object", "properties": {}})
    (True, False)
    """
    if told(old) == told(new):
        return True
    fields = [schema.get("properties", {}) for schema in (old, new)]
    defaults = [{name: field.get("default", ...) for name, field in one.items()} for one in fields]
    return defaults[0] == defaults[1] and not gaps(old, new) and not gaps(new, old)


def told(schema: Any, *, is_named: bool = False) -> Any:
    """Return what a schema says to programs, without its words for people; names of fields stay whatever they are.

    >>> told({"title": "Visit", "properties": {"title": {"type": "string", "title": "Title"}}})
    {'properties': {'title': {'type': 'string'}}}
    """
    if isinstance(schema, Mapping):
        silent = set[str]() if is_named else _WORDS_OF_PEOPLE
        return {
            word: told(value, is_named=not is_named and word in {"properties", "$defs"})
            for word, value in schema.items()
            if word not in silent and not word.startswith("x-freshet-")
        }
    return [told(one) for one in schema] if isinstance(schema, list) else schema


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return in which fields two schemas differ."""
    before, after = told(old), told(new)
    fields = [before.get("properties", {}), after.get("properties", {})]
    names = [name for name in {**fields[0], **fields[1]} if fields[0].get(name) != fields[1].get(name)]
    needed = {*before.get("required", ())} ^ {*after.get("required", ())}
    return listed([f"$.{name}" for name in dict.fromkeys([*names, *sorted(needed)])] or ["what the schema itself says"])


def _of_samples(contract: Contract, samples: Samples) -> Iterator[Finding]:
    """Tell of samples that are not what their names say, and of upcasts that none shows."""
    name, stream, versions = contract.name, contract.stream, Versions(contract)
    for version in stream.upcasts:
        good = [file for file in samples.get(version, {}) if file.startswith("good-")]
        if versions.steps(version) and not good:
            path = f"schemas/samples/{name}/{version}"
            fact = f"no good sample shows what becomes of an event of version {version}"
            yield Finding(name, path, "no_sample", fact, f"put one there, as {path}/good-….json")
    decoder = Decoder(contract)
    for version, files in samples.items():
        folder = f"schemas/samples/{name}" + ("" if version == stream.version else f"/{version}")
        for file, value in files.items():
            why = _rejected(decoder, version, value)
            if file.startswith("good-") and why is not None:
                fact, fix = f"a good sample of version {version} is rejected: {why}", _mend(contract, version)
                yield Finding(name, f"{folder}/{file}", "sample_rejected", fact, fix)
            elif file.startswith("bad-") and why is None:
                fact = f"a bad sample of version {version} is accepted"
                fix = "have the contract refuse it, or give the sample a name that begins with good-"
                yield Finding(name, f"{folder}/{file}", "sample_accepted", fact, fix)


def _mend(contract: Contract, version: int) -> str:
    if version == contract.stream.version:
        return "mend the contract or the sample; one of an older version belongs into a folder named by that version"
    known = contract.stream.versions
    return f"mend the upcasts from version {version} on" if version in known else f"write `upcasts` from {version} on"


def _rejected(decoder: Decoder, version: int, value: bytes) -> str | None:
    """Return why a message of a version is not accepted, None if it is."""
    sign: list[bytes | None] = [str(version).encode()]
    poll = Poll("", 0, 1, [value], [None], sign, np.array([-1]), np.array([0]), 1, at_end=True)
    rejects: Sequence[Any] = decoder.decode(poll).rejects
    return f"{rejects[0].reason}: {rejects[0].detail}" if rejects else None
