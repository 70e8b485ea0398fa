"""The Feast objects of a project, for the project's own `feature_repo/definitions.py`."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from freshet.flows import settings as settings_
from freshet.flows.edges.feast import repo_objects
from freshet.flows.live import Workspace


def objects(root: Path) -> list[Any]:
    """Return what a project's declaration registers with Feast; raises `Refused` if it is wrong."""
    settings = dataclasses.replace(settings_.read(os.environ), project=root)
    workspace = Workspace.open(settings)
    return repo_objects(workspace.pipeline.project, workspace.pipeline.views, workspace.offline_root)
