"""What is known of a view's visible parts: pure. What it costs grows with what is new, not with what is there."""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from freshet.schemas.part import PartSummary


class Parts:
    """The visible parts of a folder, by name, those apart whose rows are as declared.

    >>> declared, other = pa.schema([("edits", pa.int64())]), pa.schema([("edits", pa.float64())])
    >>> parts = Parts(declared)
    >>> for name, schema, count in (("a", declared, 3), ("b", other, 2), ("c", declared, 0), ("d", other, 1)):
    ...     parts.put(name, PartSummary(count, schema, None, None))
    >>> [*parts], [*parts.comparable], parts.rows_count, {name: str(found) for name, found in parts.schemas().items()}
    (['a', 'b', 'c', 'd'], ['a'], 6, {'a': 'edits: int64', 'b': 'edits: double'})
    >>> parts.pop("b").rows_count, [*parts.schemas()], parts.rows_count
    (2, ['a', 'd'], 4)
    """

    def __init__(self, declared: pa.Schema) -> None:
        self._all: dict[str, PartSummary] = {}
        self._comparable: dict[str, PartSummary] = {}
        self._of_schema: list[tuple[pa.Schema, dict[str, None]]] = [(declared, {})]
        self.rows_count = 0
        """How many rows all parts have."""

    def put(self, part: str, summary: PartSummary) -> None:
        """Know a part; one that is known and as it was keeps its place."""
        known = self._all.get(part)
        if known is not None:
            if known == summary:
                return
            self.pop(part)
        self._all[part] = summary
        self.rows_count += summary.rows_count
        names = next((names for known, names in self._of_schema if known.equals(summary.schema)), None)
        if names is None:
            names = {}
            self._of_schema.append((summary.schema, names))
        names[part] = None
        if names is self._of_schema[0][1] and summary.rows_count:
            self._comparable[part] = summary

    def pop(self, part: str) -> PartSummary:
        """Know a part no more, and return what was known of it."""
        summary = self._all.pop(part)
        self.rows_count -= summary.rows_count
        self._comparable.pop(part, None)
        for _, names in self._of_schema:
            names.pop(part, None)
        return summary

    @property
    def comparable(self) -> Mapping[str, PartSummary]:
        """Those that have rows, all as declared."""
        return self._comparable

    @property
    def are_all_as_declared(self) -> bool:
        """Whether no part has another schema."""
        return not any(names for _, names in self._of_schema[1:])

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the first part of each schema that is there."""
        return {next(iter(names)): schema for schema, names in self._of_schema if names}

    def get(self, part: str) -> PartSummary | None:
        """Return what is known of a part."""
        return self._all.get(part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __contains__(self, part: str) -> bool:
        return part in self._all
