"""Made edits: few editors do most of the work, some are robots, and a few events come late.

`python -m freshet.scripts.made_edits --rate N` writes them to standard output, one a line, until it is ended.
"""

import argparse
import contextlib
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

_CHANNELS = ("#en.wikipedia", "#de.wikipedia", "#fr.wikipedia", "#ja.wikipedia", "#es.wikipedia", "#ru.wikipedia")
_NAMESPACES = ("Main", "Main", "Main", "Talk", "User talk", "Wikipedia", "File")
_USERS_COUNT, _PAGES_COUNT = 400, 1500
_LATE_MAX = timedelta(seconds=3)


def user(rank: int) -> str:
    """Name an editor: every fifth is a robot, every third an address."""
    if rank % 5 == 0:
        return f"Bot{rank}"
    return f"198.51.100.{rank % 256}" if rank % 3 == 0 else f"Editor{rank}"


def edits(seed: int) -> Iterator[dict[str, Any]]:
    """Make edits without end; each is dated when it is asked for, one in twenty up to three seconds earlier."""
    chance = random.Random(seed)  # noqa: S311  # realistic, not secret
    while True:
        editor = user(int(_USERS_COUNT * chance.random() ** 3))
        added, deleted = int(chance.expovariate(1 / 120)), int(chance.expovariate(1 / 40))
        late = _LATE_MAX * chance.random() if chance.random() < 0.05 else timedelta(0)
        yield {
            "time": (datetime.now(UTC) - late).isoformat(timespec="milliseconds"),
            "channel": chance.choices(_CHANNELS, (50, 15, 12, 10, 8, 5))[0],
            "page": f"Page {int(_PAGES_COUNT * chance.random() ** 2)}",
            "user": editor,
            "namespace": chance.choice(_NAMESPACES),
            "comment": None if chance.random() < 0.2 else "small fix" if added < 50 else "rewrote the second paragraph",
            "added": added,
            "deleted": deleted,
            "delta": added - deleted,
            "isAnonymous": editor[0].isdigit(),
            "isMinor": added + deleted < 20,
            "isNew": chance.random() < 0.03,
            "isRobot": editor.startswith("Bot"),
            "isUnpatrolled": chance.random() < 0.1,
        }


def main() -> None:
    """Write edits at a steady rate."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rate", type=float, default=50, help="edits a second")
    words.add_argument("--seed", type=int, default=2015)
    chosen = words.parse_args()
    started = time.monotonic()
    for number, edit in enumerate(edits(chosen.seed)):
        time.sleep(max(0.0, started + number / chosen.rate - time.monotonic()))
        print(json.dumps(edit), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # whoever reads has had enough
        main()
