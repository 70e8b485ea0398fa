"""Make the rows of features anew from the archived events, and hand them to the running flow at an exact offset.

`freshet apply` does so for what is new or changed. This is for what is in force already: history that `apply --from`
left out, or that an archive which was brought back has now. All features of a view are one row, so they are made
together. The flow, the stores and readers go on meanwhile; kill it at any moment, and run it again.
"""

import argparse
import json
from collections.abc import Iterable

from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.settings import Settings
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.plan import Pipeline
from freshet.scripts.apply import hand_over, making_folders, past_us, print_made, register, told


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("features", nargs="+", metavar="FEATURE", help="features, or whole feature views")
    words.add_argument(
        "--from", dest="since", metavar="TIME", help="leave rows before as they are (default: all that is archived)"
    )
    words.add_argument("--json", action="store_true", help="print what was done as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Make rows anew, and say how many."""
    since_us = None if words.since is None else past_us("--from", words.since)
    workspace = Workspace.applied(settings)
    files = AppliedFile(workspace.offline_root)
    with files.applying(), making_folders(workspace):
        workspace = workspace.in_force() or workspace  # whatever was being applied is by now
        _refuse_not_applied(workspace)
        views = views_of(words.features, workspace.pipeline, is_edited=bool(workspace.status().edited))
        if LedgerFile(workspace.offline_root).read() is None:
            hint = "run the materializer: what is declared is computed from the first event on"
            raise Refused([Problem("offline store", str(workspace.offline_root), "has no events yet", hint=hint)])
        done = told(hand_over(workspace, files, workspace, since_us, views))
        register(workspace)
    if words.json:
        print(json.dumps(done, indent=2))
    else:
        print_made(done)
    return 0


def _refuse_not_applied(workspace: Workspace) -> None:
    """Refuse to put in force, by the way, what only `freshet apply` may: it looks whether that can be."""
    declared = workspace.applied_last()
    if declared is None:
        hint = "run `freshet apply`: it makes the rows of what is new or changed"
        raise Refused([Problem("declaration", workspace.declared.place, "was never applied", hint=hint)])
    if edited := workspace.project.edited(declared.contracts):
        hint = "run `freshet apply` first, or take the edit back"
        raise Refused([Problem("contract", listed(edited), "was edited and not applied", hint=hint)])


def views_of(named: Iterable[str], pipeline: Pipeline, *, is_edited: bool) -> frozenset[str]:
    """Return the views that features are of, each named by itself or by its view; raises `Refused` for unknown ones."""
    owners = {feature.name: view.name for view in pipeline.views for feature in view.features}
    owners |= {view.name: view.name for view in pipeline.views}
    problems = []
    for name in named:
        if name not in owners:
            meant = nearest(name, owners)
            hint = f"did you mean {meant}?" if meant else f"there is {listed(sorted(owners))}"
            if is_edited:
                hint = "what is in force was edited: run `freshet apply`, which fills what is new or changed"
            problems.append(Problem("feature", name, "is not in force", hint=hint))
    if problems:
        raise Refused(problems)
    return frozenset(owners[name] for name in named)
