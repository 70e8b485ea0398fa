"""A user's project on disk: the declaration, and the event contracts it names.

::

    DIR/feature_repo/features.yaml      the declaration
    DIR/feature_repo/feature_store.yaml written by `freshet apply`
    DIR/schemas/events/<stream>.py      one contract a stream
    DIR/schemas/samples/<stream>/       example messages, good-….json and bad-….json; an old version's in 1/
    DIR/schemas/snapshots/<stream>/     the JSON Schema of each version of the contract, 1.json

and the files that it compares its features' distributions with, wherever in DIR it says they are.
"""

import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import PydanticUserError

from freshet.schemas import declaration
from freshet.schemas.declaration import Source
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.event import Contract, Event, contract
from freshet.schemas.expected import Distance, Reference
from freshet.schemas.plan import Pipeline
from freshet.schemas.view import Feature, View

PACKAGED = Path(__file__).parents[2]
"""Where this repository's own project stands: beside the code, installed or not."""

_BINS_COUNT = {Distance.PSI: 10, Distance.JS: 10, Distance.KS: 100}
"""Into how many bins a reference's numbers are counted; each has about as many."""

_VERSION = re.compile(r"[1-9]\d{0,8}", re.ASCII)

_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Project:
    """A directory that holds a declaration."""

    root: Path

    @property
    def feature_repo(self) -> Path:
        """Feast's folder."""
        return self.root / "feature_repo"

    @property
    def registry(self) -> Path:
        """Feast's registry: derived, not declared, so it is kept with the state and not with the sources."""
        return self.root / ".freshet" / "registry.db"

    def declaration(self) -> Source:
        """Read the declaration; raises `Refused`."""
        place, text = self.written()
        return declaration.read(text, place)

    def written(self) -> tuple[str, str]:
        """Return the declaration's place and its text, as it is written by now; raises `Refused`."""
        for name in ("features.yaml", "features.yml", "features.json"):
            path = self.feature_repo / name
            if path.is_file():
                return f"feature_repo/{name}", _text(path)
        hint = "run `freshet init DIR`, or name the project's folder with -C"
        raise Refused([Problem("project", str(self.root), "has no feature_repo/features.yaml", hint=hint)])

    def with_references(self, pipeline: Pipeline, source: Source) -> Pipeline:
        """Read the files that features' distributions are compared with; raises `Refused` with every problem."""
        problems: list[Problem] = []
        places = {
            name: source.place("featureDefinitions", index, "expect", "distribution", "reference")
            for index, made in enumerate(source.declaration.featureDefinitions)
            for name in made.names
        }

        def read(feature: Feature) -> Feature:
            drawn = feature.expected.distribution
            if drawn is None or isinstance(drawn.reference, Reference):
                return feature
            try:
                reference = _counted(_column(self.root / drawn.reference, feature), feature, drawn.distance)
            except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
                fact, hint = "has a reference that cannot be read", "write the path of a parquet or JSON file"
                got = f"{drawn.reference}: {error.strerror if isinstance(error, OSError) else error}"
                problems.append(Problem("feature", feature.name, fact, got, hint, places[feature.name]))
                return feature
            return replace(
                feature, expected=replace(feature.expected, distribution=replace(drawn, reference=reference))
            )

        def whole(view: View) -> View:
            return replace(view, features=tuple(map(read, view.features)))

        plans = tuple(replace(plan, view=whole(plan.view)) for plan in pipeline.plans)
        if problems:
            raise Refused(problems)
        return replace(pipeline, plans=plans)

    def canaries(self, path: Path) -> Mapping[str, Any]:
        """Read which events the user agrees to have published, by stream; raises `Refused`."""
        text, name = _text(self.root / path, "canaries"), str(path)
        hint = "write, by stream, an event whose key and entities have {canary} in them"
        try:
            told = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise Refused([Problem("canaries", name, "is neither YAML nor JSON", str(error), hint)]) from error
        if not isinstance(told, dict) or not told or not all(isinstance(stream, str) for stream in told):
            raise Refused([Problem("canaries", name, "has no events by stream", repr(told)[:80], hint)])
        return told

    def contracts(self, streams: Iterable[str]) -> dict[str, Contract]:
        """Load the contracts of the given streams; raises `Refused` with every problem found in them."""
        problems: list[Problem] = []
        found: dict[str, Contract] = {}
        for stream in dict.fromkeys(streams):
            try:
                found[stream] = self._contract(stream)
            except Refused as refusal:
                problems.extend(refusal.problems)
        if problems:
            raise Refused(problems)
        return found

    def contract_ids(self, streams: Iterable[str]) -> dict[str, str]:
        """Return, by stream, what differs whenever its contract's file does; raises `Refused` for one that is gone."""
        texts = {stream: _text(self._contract_file(stream), "contract") for stream in streams}
        return {stream: hashlib.sha256(text.encode()).hexdigest()[:12] for stream, text in texts.items()}

    def edited(self, contract_ids: Mapping[str, str]) -> list[str]:
        """Return the files of contracts that are other ones by now, or gone."""
        found = {stream: self._contract_file(stream) for stream in contract_ids}
        there = self.contract_ids(stream for stream, path in found.items() if path.is_file())
        return [
            path.relative_to(self.root).as_posix()
            for stream, path in found.items()
            if there.get(stream) != contract_ids[stream]
        ]

    @property
    def streams(self) -> list[str]:
        """The streams that have a contract, whether a feature is made of them or not."""
        return sorted(path.stem for path in (self.root / "schemas" / "events").glob("[a-z]*.py"))

    def snapshots(self, stream: str) -> dict[int, Any]:
        """Read the JSON Schemas of a contract's versions; raises `Refused` for one that is none."""
        folder = self.root / "schemas" / "snapshots" / stream
        found: dict[int, Any] = {}
        for path in sorted(folder.glob("*.json")):
            hint = f"name it by its version, as 1.json, or bring schemas/snapshots/{stream} back from version control"
            if not _VERSION.fullmatch(path.stem):
                raise Refused([Problem("snapshot", path.name, f"of {stream} is of no version", hint=hint)])
            try:
                schema = json.loads(_text(path, "snapshot"))
            except ValueError as error:
                raise Refused([Problem("snapshot", path.name, f"of {stream} is no JSON", str(error), hint)]) from error
            if not isinstance(schema, dict):
                raise Refused([Problem("snapshot", path.name, f"of {stream} is no JSON Schema", hint=hint)])
            found[int(path.stem)] = schema
        return dict(sorted(found.items()))

    def write_snapshot(self, stream: str, version: int, schema: Any) -> Path:
        """Write the JSON Schema of a contract's version; raises `Refused` if it cannot be written."""
        path = self.root / "schemas" / "snapshots" / stream / f"{version}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise Refused([Problem("snapshot", str(path), f"cannot be written: {error.strerror}")]) from error
        return path

    def samples(self, stream: str, version: int) -> dict[int, dict[str, bytes]]:
        """Read a stream's example messages, by version and file; those of its newest `version` are in no folder."""
        folder = self.root / "schemas" / "samples" / stream
        older = [path for path in sorted(folder.glob("*")) if path.is_dir() and _VERSION.fullmatch(path.name)]
        places = [(version, folder), *((int(path.name), path) for path in older)]
        found: dict[int, dict[str, bytes]] = {}
        for number, place in places:
            files = {path.name: path.read_bytes() for path in sorted(place.glob("*.json"))}
            found.setdefault(number, {}).update(files)
        return found

    def _contract_file(self, stream: str) -> Path:
        return self.root / "schemas" / "events" / f"{stream}.py"

    def _contract(self, stream: str) -> Contract:
        known = self.streams
        if stream not in known:
            meant = nearest(stream, known)
            hint = (
                f"did you mean {meant}?" if meant else f"add schemas/events/{stream}.py, or use one of {listed(known)}"
            )
            raise Refused([Problem("stream", stream, "has no event contract in schemas/events", hint=hint)])
        path = self._contract_file(stream)
        models = _models(path)
        if len(models) != 1:
            names = listed([model.__name__ for model in models])
            hint = "keep exactly one class there that derives from freshet.schemas.event.Event"
            raise Refused([Problem("stream", stream, "does not have one contract", names, hint, str(path))])
        made, problems = contract(stream, models[0])
        if made is None:
            raise Refused(problems)
        return made


def _models(path: Path) -> list[type[Event]]:
    """Import a contract's file, under a name of its own, and return the contracts in it.

    What was written since is imported anew: a process may run on while its project changes.
    """
    name = f"freshet_contract_{path.stem}_{abs(hash((path.resolve(), _text(path, 'contract'))))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None, path
        assert spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (SyntaxError, ImportError, NameError, TypeError, AttributeError, ValueError, PydanticUserError) as error:
            del sys.modules[name]
            fact = f"cannot be imported: {type(error).__name__}: {error}"
            raise Refused([Problem("stream", path.stem, fact, hint="mend the file", place=str(path))]) from error
    members = vars(sys.modules[name]).values()
    return [m for m in members if isinstance(m, type) and issubclass(m, Event) and m.__module__ == name]


def _column(path: Path, feature: Feature) -> pa.Array:
    """Return a feature's column of a parquet file, or of a JSON file: a list or lines of objects, or lists by name."""
    if path.suffix in {".json", ".jsonl", ".ndjson"}:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        values = data.get(feature.name) if isinstance(data, dict) else [line.get(feature.name) for line in data]
        if values is None:
            raise ValueError(f"it has no column {feature.name}")
        return pa.array(values, feature.dtype.arrow)
    table = pq.read_table(path)
    if feature.name not in table.column_names:
        raise ValueError(f"it has no column {feature.name}")
    return table[feature.name].cast(feature.dtype.arrow).combine_chunks()


def _counted(column: pa.Array, feature: Feature, distance: Distance) -> Reference:
    """Count a column's values, without nulls: numbers in bins that hold about as many each, others by themselves."""
    values = [value for value in column.to_pylist() if value is not None and value == value]  # noqa: PLR0124  # NaN
    if not values:
        raise ValueError(f"its column {feature.name} has no values")
    if not pa.types.is_integer(feature.dtype.arrow) and not feature.dtype.is_float:
        counts = Counter(values)
        return Reference(tuple(map(float, counts.values())), categories=tuple(counts), count=len(values))
    numbers = np.array(values, float)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        raise ValueError(f"its column {feature.name} has no finite values")
    inner = np.unique(np.quantile(numbers, np.linspace(0, 1, _BINS_COUNT[distance] + 1)[1:-1], method="lower"))
    weights = np.bincount(np.searchsorted(inner, numbers, side="right"), minlength=len(inner) + 1)
    edges = (-math.inf, *inner.tolist(), math.inf)
    return Reference(tuple(map(float, weights)), bins=edges, count=len(numbers))


def _text(path: Path, kind: str = "declaration") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused([Problem(kind, path.name, "is not UTF-8", f"byte {error.start}", "save it as UTF-8")]) from error
    except OSError as error:
        raise Refused([Problem(kind, path.name, f"cannot be read: {error.strerror}")]) from error


def expand(text: str, what: str, environment: Mapping[str, str] = os.environ) -> str:
    """Put environment variables where `${NAME}` stands; raises `Refused` for one that is not set.

    >>> expand("redis://:${PASSWORD}@localhost", "onlineStore", {"PASSWORD": "wood"})
    'redis://:wood@localhost'
    """
    missing = [name for name in _ENVIRONMENT.findall(text) if name not in environment]
    if missing:
        names = listed(missing)
        raise Refused(
            [Problem("key", what, f"names environment variables that are not set: {names}", hint=f"export {names}")]
        )
    return _ENVIRONMENT.sub(lambda found: environment[found[1]], text)
