"""The Feast objects of a project, for the project's own `feature_repo/definitions.py`."""

import os
from pathlib import Path
from typing import Any

from freshet.flows import settings as settings_
from freshet.flows.edges.feast import repo_objects
from freshet.flows.workspace import Workspace


def objects(root: Path) -> list[Any]:
    """Return what a project's declaration in force registers with Feast; raises `Refused` if it is wrong."""
    workspace = Workspace.applied(settings_.read(os.environ, {"project": str(root)}))
    return repo_objects(workspace.pipeline.project, workspace.pipeline.views, workspace.offline())
