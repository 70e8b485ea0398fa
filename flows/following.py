"""How a process that runs on follows the declaration in force, which `freshet apply` changes while all of it runs."""

import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from freshet.flows.edges.applied import AppliedFile, Stamp
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import FreshetError, Problem, Refused

LOG = logging.getLogger("freshet")

_AGAIN_S = 10.0
"""After so long a declaration that could not be gone on by is tried again, since what it lacks may have come."""

_T = TypeVar("_T")


class Following(Generic[_T]):
    """Tells when another declaration is in force than a process goes by.

    `begin` makes of the new workspace what the process goes on by. A declaration of which it cannot be made, for
    whatever reason, is an error in the log, and the one before is gone on by. Another offline store or recovery folder
    is another deployment: it is not seen from here.
    """

    def __init__(
        self, workspace: Workspace, begin: Callable[[Workspace], _T], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.workspace = workspace
        self._files, self._begin, self._clock_s = AppliedFile(workspace.offline_root), begin, clock_s
        self._seen: Stamp | None = None
        self._failed: tuple[Stamp | None, float] | None = None
        self._said = ""

    def look(self) -> _T | None:
        """Return what to go on by, once, if another declaration came into force; None, for a stat, if none did."""
        stamp = self._seen
        try:
            stamp = self._files.stamp()
            if stamp == self._seen or self._has_just_failed(stamp):
                return None
            found = self.workspace.in_force()
            is_other = found is not None and not found.declared.is_same(self.workspace.declared)
            begun = self._begun(found) if found is not None and is_other else None
        except FreshetError as error:
            self._fail(stamp, error)
            return None
        if found is not None:
            self.workspace = found
        self._seen, self._failed, self._said = stamp, None, ""
        return begun

    def _begun(self, found: Workspace) -> _T:
        before, after = self.workspace.pipeline.project, found.pipeline.project
        if before != after:
            hint = "start this process again: all names in Kafka and the stores begin with the project's"
            raise Refused([Problem("project", after, "takes the place of another one", before, hint)])
        return self._begin(found)

    def _has_just_failed(self, stamp: Stamp | None) -> bool:
        failed, at_s = self._failed or (None, 0.0)
        return self._failed is not None and failed == stamp and self._clock_s() - at_s < _AGAIN_S

    def _fail(self, stamp: Stamp | None, error: FreshetError) -> None:
        self._failed = stamp, self._clock_s()
        if str(error) != self._said:
            self._said = str(error)
            LOG.error("the declaration in force cannot be gone on by, the one before still is: %s", error)
