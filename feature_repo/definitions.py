"""What `feast apply` registers: built from features.yaml, so there is nothing to keep in step by hand."""

from pathlib import Path

from freshet.scripts.definitions import objects

globals().update({f"{type(made).__name__}_{made.name}": made for made in objects(Path(__file__).parent.parent)})
