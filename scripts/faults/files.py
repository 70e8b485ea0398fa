"""What goes wrong with files of the offline store that are visible already."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.schemas.finding import Cause
from freshet.schemas.view import View
from freshet.scripts.faults.deeds import Choice, Deed, Deeds

CAUSES = (Cause.PARTIAL_BATCH, Cause.SCHEMA_DRIFT)


class FileFault:
    """Damages, of the parts that it did not meet yet, those that a choice takes."""

    def __init__(self, cause: Cause, choice: Choice, deeds: Deeds, root: Path) -> None:
        self._cause, self._choice, self._deeds, self._root = cause, choice, deeds, root
        self._met: set[str] = set()

    def pass_over(self, view: View) -> None:
        """Spare all parts that are visible by now."""
        self._met.update(part.name for part in self._parts(view))

    def strike(self, view: View) -> int:
        """Damage the new ones; return how many."""
        count = 0
        for part in self._parts(view):
            if part.name in self._met:
                continue
            self._met.add(part.name)
            if self._choice.takes(part.name.encode()) and (what := self._damaged(part, view)):
                self._deeds.did([Deed(time.time(), view.name, what=f"{part.name}: {what}")])
                count += 1
        return count

    def _parts(self, view: View) -> list[Path]:
        return sorted((self._root / view.name).glob("part-*.parquet"))

    def _damaged(self, part: Path, view: View) -> str:
        with part.open("rb") as file:
            rows = pq.ParquetFile(file).read()
        if rows.num_rows == 0:
            return ""
        match self._cause:
            case Cause.PARTIAL_BATCH:
                left = rows.num_rows // 2
                _write(part, rows.slice(0, left))
                return f"{left} of {rows.num_rows} rows left"
            case Cause.SCHEMA_DRIFT:
                name = next(feature.name for feature in view.features if pa.types.is_integer(feature.dtype.arrow))
                place = rows.schema.get_field_index(name)
                _write(part, rows.set_column(place, name, rows.column(name).cast(pa.float64(), safe=False)))
                return f"{name} is double"
        raise AssertionError(f"files have no {self._cause}")


def _write(part: Path, rows: pa.Table) -> None:
    """Put a part there as a whole: a reader must meet the damage, not half a file."""
    unseen = part.with_name(f".{part.name}.fault")
    pq.write_table(rows, unseen)
    unseen.replace(part)
