"""Put a copy of the reference project, Wikipedia's edits, into a folder: `python -m freshet.scripts.reference DIR`.

A file that is there already stays as it is.
"""

import shutil
import sys
from pathlib import Path

from freshet.flows.edges.project import PACKAGED

FOLDERS = ("feature_repo", "schemas/events", "schemas/samples", "schemas/snapshots")


def copy(root: Path) -> None:
    """Copy the declaration, the event contracts, their samples and snapshots."""
    for folder in FOLDERS:
        for source in sorted((PACKAGED / folder).rglob("*")):
            target = root / source.relative_to(PACKAGED)
            made_later = "__pycache__" in source.parts or source.name == "feature_store.yaml"
            if source.is_file() and not made_later and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


if __name__ == "__main__":
    copy(Path(sys.argv[1]))
