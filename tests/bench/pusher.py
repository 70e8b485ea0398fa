"""The pipeline at full speed: rows of the same few entities, written again and again by the materializer's own writer."""

import json
import select
import sys

from serving_rig import numbered

from freshet.flows import settings
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.workspace import Workspace


def main() -> None:
    """Write until the input ends; each line asks how many rows were written by now, the first once there are some."""
    workspace = Workspace.open(settings.read({"FRESHET_PROJECT": sys.argv[1], "FRESHET_ONLINE_STORE": sys.argv[2]}))
    [view] = workspace.pipeline.views
    store = OnlineStore(workspace.online_url, workspace.pipeline.project, [view])
    pushed_count, version, written_count = int(sys.argv[3]), 0, 0
    while True:
        version += 1
        written_count += store.write(view, numbered(view, pushed_count, version))
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps({"rows_count": written_count}), flush=True)
