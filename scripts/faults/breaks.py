"""The ways in which `freshet demo --break CAUSE` breaks a running system, outside of the validator.

A fault is in its place from the start, and does nothing before it begins: what is measured is the fault, not its being
put there.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from freshet.flows.live import Workspace
from freshet.schemas.finding import Cause
from freshet.scripts.faults import files, online, sink
from freshet.scripts.faults.deeds import Account, Choice, Deed, Deeds
from freshet.scripts.faults.files import FileFault
from freshet.scripts.faults.online import OnlineFault
from freshet.scripts.faults.proxy import Proxy

AHEAD = timedelta(minutes=2)
"""How far a clock runs ahead: less than a stream allows, more than two machines may differ."""

_CHOICE = Choice(0.5, 2015)
_ALL = Choice(1.0)
_LOOK_AGAIN_S = 0.02
_MATERIALIZER = (sys.executable, "-m", "freshet.scripts.cli", "run", "materializer")


class Fault:
    """One that does nothing. `command` runs the materializer, which finds the online store at `online_url`."""

    def __init__(self, cause: Cause | None, workspace: Workspace, folder: Path) -> None:
        self.command: Sequence[str] = _MATERIALIZER
        self.online_url = workspace.online_url
        self.materializer: subprocess.Popen[bytes] | None = None
        self._cause, self._workspace, self._deeds = cause, workspace, Deeds(folder / "deeds")
        self._ended, self._error = threading.Event(), list[BaseException]()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Strike from now on."""
        self._deeds.command("demo", self._cause or "")
        self._break()

    def account(self) -> Account:
        """Return what was done until now, once it has begun. Raises what the fault itself could not do."""
        for error in self._error:
            raise error
        account = self._deeds.account()
        assert account is not None, "a fault that has not begun"
        return account

    def sent(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the event that a producer sends in place of this one."""
        return event

    def close(self) -> None:
        """Undo what would outlive the fault."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _break(self) -> None:
        """Do what this fault does."""

    def _now_and_then(self, act: Callable[[], object]) -> None:
        """Do something again and again until the fault is closed."""

        def run() -> None:
            try:
                while not self._ended.wait(_LOOK_AGAIN_S):
                    act()
            except BaseException as error:  # noqa: BLE001  # raised where the account is asked for
                self._error.append(error)

        self._thread = threading.Thread(target=run, name="fault", daemon=True)
        self._thread.start()


class _OnTheWayOnline(Fault):
    """A proxy stands before the online store."""

    def __init__(self, cause: Cause, workspace: Workspace, folder: Path) -> None:
        super().__init__(cause, workspace, folder)
        self._rule = OnlineFault(cause, _CHOICE, self._deeds, workspace.pipeline.views)
        self._proxy = Proxy(_port(workspace), self._rule)
        self.online_url = self._proxy.url

    def _break(self) -> None:
        self._rule.begin()
        self._now_and_then(lambda: self._rule.replay(self._proxy.send))

    def close(self) -> None:
        super().close()
        self._proxy.close()


class _OnTheWayOffline(Fault):
    """The materializer's own sink is faulty."""

    def __init__(self, cause: Cause, workspace: Workspace, folder: Path) -> None:
        super().__init__(cause, workspace, folder)
        self._order = folder / "order"
        module = "freshet.scripts.faults.materializer"
        self.command = (sys.executable, "-m", module, str(self._order), str(self._deeds.path))

    def _break(self) -> None:
        unseen = self._order.with_suffix(".unseen")
        unseen.write_text(json.dumps({"cause": self._cause, "rate": _CHOICE.rate, "seed": _CHOICE.seed}))
        unseen.replace(self._order)


class _Files(Fault):
    """Parts are damaged as soon as they are visible."""

    def __init__(self, cause: Cause, workspace: Workspace, folder: Path) -> None:
        super().__init__(cause, workspace, folder)
        self._fault = FileFault(cause, _ALL, self._deeds, workspace.offline_root)

    def _break(self) -> None:
        views = self._workspace.pipeline.views
        for view in views:
            self._fault.pass_over(view)
        self._now_and_then(lambda: [self._fault.strike(view) for view in views])


class _Clock(Fault):
    """The clock of whoever makes events runs ahead."""

    _begun = False

    def sent(self, event: dict[str, Any]) -> dict[str, Any]:
        if not self._begun:
            return event
        [contract] = self._workspace.contracts.values()
        field = contract.stream.event_time
        at = datetime.fromisoformat(event[field]) + AHEAD
        self._deeds.did(
            Deed(time.time(), view.name, " / ".join(str(event[name]) for name in view.entity_names), f"sent as of {at}")
            for view in self._workspace.pipeline.views
        )
        return event | {field: at.isoformat()}

    def _break(self) -> None:
        self._begun = True


class _Emptied(Fault):
    """The online store comes back empty while the materializer hangs; one that does not would fill it again."""

    def _break(self) -> None:
        assert self.materializer is not None, "started before"
        self.materializer.send_signal(signal.SIGSTOP)
        with Proxy(_port(self._workspace)) as proxy:
            proxy.send([(b"FLUSHALL",)])
        self._deeds.did(Deed(time.time(), view.name, what="emptied") for view in self._workspace.pipeline.views)


def _port(workspace: Workspace) -> int:
    port = urlsplit(workspace.online_url).port
    assert port is not None, workspace.online_url
    return port


_FAULTS: dict[Cause, Callable[[Cause, Workspace, Path], Fault]] = {
    **dict.fromkeys(online.CAUSES, _OnTheWayOnline),
    **dict.fromkeys(sink.CAUSES, _OnTheWayOffline),
    **dict.fromkeys(files.CAUSES, _Files),
    Cause.CLOCK_SKEW: _Clock,
    Cause.STALE_ONLINE: _Emptied,
}

CAUSES = tuple(_FAULTS)
"""What can be broken."""


def put(cause: Cause | None, workspace: Workspace, folder: Path) -> Fault:
    """Put a fault in its place, or none; it keeps what it needs in a folder."""
    return Fault(None, workspace, folder) if cause is None else _FAULTS[cause](cause, workspace, folder)
