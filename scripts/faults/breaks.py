"""The ways in which a running system is broken outside of the validator, by `freshet demo --break` and by benches.

All of them are in their places from the start, and do nothing before one begins: what is measured is the fault, not its
being put there.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from freshet.flows.workspace import Workspace
from freshet.schemas.finding import Cause
from freshet.scripts.faults import files, online, sink
from freshet.scripts.faults.deeds import Account, Choice, Deed, Deeds
from freshet.scripts.faults.files import FileFault
from freshet.scripts.faults.materializer import order
from freshet.scripts.faults.online import OnlineFault
from freshet.scripts.faults.proxy import Proxy

AHEAD = timedelta(minutes=2)
"""How far a clock runs ahead: less than a stream allows, more than two machines may differ."""

_LOOK_AGAIN_S = 0.02


class Faults:
    """Breaks a system, in one way at a time.

    `command` runs the materializer, which finds the online store at `online_url`, through `proxy`; `materializer` is
    that process once it is started.
    """

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace, self.folder, self.port = workspace, folder, port_of(workspace)
        self._online, self._sink = _OnTheWayOnline(self), _OnTheWayOffline(self)
        self.proxy, self.command = self._online.proxy, self._sink.command
        self.online_url = self.proxy.url
        self.materializer: subprocess.Popen[bytes] | None = None
        self._way: _Way | None = None
        self._deeds = Deeds(folder / "deeds")
        self._lock, self._ended, self._errors = threading.Lock(), threading.Event(), list[BaseException]()
        self._thread = threading.Thread(target=self._now_and_then, name="faults", daemon=True)
        self._thread.start()

    def begin(self, cause: Cause, choice: Choice, fault_id: str = "demo") -> None:
        """Strike from now on what is chosen. Of `stale_online` nothing can be chosen: it is the store as a whole."""
        assert self._way is None, "one at a time"
        deeds = Deeds(self.folder / f"deeds-{fault_id}")
        deeds.command(fault_id, cause)
        way = self._way_of(cause)
        with self._lock:
            self._deeds, self._way = deeds, way
            way.begin(cause, choice, deeds)

    def end(self) -> None:
        """Strike no more; what was done stays done."""
        with self._lock:
            if self._way is not None:
                self._way.end()
            self._way = None

    def account(self) -> Account:
        """Return what the fault that began last has done until now. Raises what it itself could not do."""
        for error in self._errors:
            raise error
        account = self._deeds.account()
        assert account is not None, "a fault that has not begun"
        return account

    def sent(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the event that a producer sends in place of this one."""
        way = self._way
        return event if way is None else way.sent(event)

    def close(self) -> None:
        """Undo what would outlive the faults."""
        self._ended.set()
        self._thread.join()
        self.end()
        self.proxy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _way_of(self, cause: Cause) -> "_Way":
        if cause in online.CAUSES:
            return self._online
        return self._sink if cause in sink.CAUSES else _WAYS[cause](self)

    def _now_and_then(self) -> None:
        while not self._ended.wait(_LOOK_AGAIN_S):
            try:
                with self._lock:
                    if self._way is not None:
                        self._way.again()
            except BaseException as error:  # noqa: BLE001  # raised where the account is asked for
                self._errors.append(error)
                return


class _Way:
    """One way to break."""

    def __init__(self, faults: Faults) -> None:
        self._faults, self._views = faults, faults.workspace.pipeline.views

    def begin(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        """Strike from now on."""
        raise NotImplementedError

    def again(self) -> None:
        """Do what is to be done now and then."""

    def sent(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the event that is sent in place of this one."""
        return event

    def end(self) -> None:
        """Strike no more."""


class _OnTheWayOnline(_Way):
    """A proxy stands before the online store."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        none = Deeds(faults.folder / "deeds")
        self._rule = OnlineFault(Cause.LOST_ONLINE_WRITE, Choice(0.0), none, self._views)
        self.proxy = Proxy(faults.port, self._rule)

    def begin(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        self._rule.aim(cause, choice, deeds)
        self._rule.begin()

    def again(self) -> None:
        self._rule.replay(self.proxy.send)

    def end(self) -> None:
        self._rule.end()


class _OnTheWayOffline(_Way):
    """The materializer's own sink is faulty."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self._order = faults.folder / "order"
        self.command = (sys.executable, "-m", "freshet.scripts.faults.materializer", str(self._order))

    def begin(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        unseen = self._order.with_suffix(".unseen")
        unseen.write_text(order(cause, choice, deeds), encoding="utf-8")
        unseen.replace(self._order)

    def end(self) -> None:
        self._order.unlink()


class _Files(_Way):
    """Parts are damaged as soon as they are visible."""

    def begin(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        self._fault = FileFault(cause, choice, deeds, self._faults.workspace.offline_root)
        for view in self._views:
            self._fault.pass_over(view)

    def again(self) -> None:
        for view in self._views:
            self._fault.strike(view)


class _Clock(_Way):
    """The clock of whoever makes events runs ahead."""

    def begin(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        del cause
        self._choice, self._deeds = choice, deeds

    def sent(self, event: dict[str, Any]) -> dict[str, Any]:
        [contract] = self._faults.workspace.contracts.values()
        stream = contract.stream
        key, at = str(event[stream.key]), datetime.fromisoformat(event[stream.event_time]) + AHEAD
        if not self._choice.takes(f"{key} {at}".encode(), key):
            return event
        self._deeds.did(
            Deed(time.time(), view.name, " / ".join(str(event[name]) for name in view.entity_names), f"sent as of {at}")
            for view in self._views
        )
        return event | {stream.event_time: at.isoformat()}


class _Emptied(_Way):
    """The online store comes back empty while the materializer hangs; one that does not would fill it again."""

    def begin(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        del cause, choice
        assert self._faults.materializer is not None, "started before"
        self._faults.materializer.send_signal(signal.SIGSTOP)
        self._faults.proxy.send([(b"FLUSHALL",)])
        deeds.did(Deed(time.time(), view.name, what="emptied") for view in self._views)

    def end(self) -> None:
        assert self._faults.materializer is not None, "started before"
        self._faults.materializer.send_signal(signal.SIGCONT)


def port_of(workspace: Workspace) -> int:
    """Return the port of a project's online store."""
    port = urlsplit(workspace.online_url).port
    assert port is not None, workspace.online_url
    return port


_WAYS: dict[Cause, Callable[[Faults], _Way]] = {
    **dict.fromkeys(files.CAUSES, _Files),
    Cause.CLOCK_SKEW: _Clock,
    Cause.STALE_ONLINE: _Emptied,
}

CAUSES = (*online.CAUSES, *sink.CAUSES, *_WAYS)
"""What can be broken."""

OF_ENTITIES = (*online.CAUSES, *sink.CAUSES, Cause.CLOCK_SKEW)
"""What can befall some entities and spare others."""
