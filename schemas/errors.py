"""Every exception of ours, drawn as a tree.

::

    FreshetError
    ├── Refused         the user's declaration, contract or command is wrong: all problems at once (exit 2)
    ├── Unavailable     an outside system cannot be used: named, with its address (exit 5)
    │   ├── StoreLost   the online store lost what was written: it is to be filled again
    │   └── PeerLost    another process of the same flow ended; what went wrong, that one says
    └── RejectLimit     too many events in a row could not be used: a bad deploy, not bad data (exit 1)

Bad data is not an exception: it is a `Reject` value. Our own mistakes are assertions.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class FreshetError(Exception):
    """Whatever Freshet says on purpose; anything else that escapes is a defect of ours."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it stands, and what to write instead.

    >>> print(Problem("feature", "clicks_10m", "has no transformation", hint="add `transformation:`", place="line 7"))
    line 7: feature "clicks_10m" has no transformation. Hint: add `transformation:`
    >>> print(Problem("stream", "edits", "is unknown", got="'edits'", hint="write wiki_edits"))
    stream "edits" is unknown; got 'edits'. Hint: write wiki_edits
    """

    kind: str
    name: str
    fact: str
    got: str = ""
    hint: str = ""
    place: str = ""

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        got = f"; got {self.got}" if self.got else ""
        hint = f". Hint: {self.hint}" if self.hint else ""
        return f'{place}{self.kind} "{self.name}" {self.fact}{got}{hint}'


class Refused(FreshetError):
    """What the user wrote cannot be used; `problems` holds every reason found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "a refusal without a problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Unavailable(FreshetError):
    """An outside system cannot be used; the message names it, its address and the root cause."""


class StoreLost(Unavailable):
    """The online store answers, but has lost what was written."""


class PeerLost(Unavailable):
    """Another process of the same flow ended."""

    FACT = "ended because another one of its flow did"


class RejectLimit(FreshetError):
    """Too many events in a row were rejected."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` was probably meant to be, or None.

    >>> nearest("transfromation", ["name", "transformation"])
    'transformation'
    >>> nearest("colour", ["name", "transformation"]) is None
    True
    """
    folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.72)
    return folded[found[0]] if found else None


def listed(words: Sequence[str]) -> str:
    """Join words for a sentence.

    >>> listed(["user", "page", "channel"])
    'user, page, channel'
    """
    return ", ".join(words) if words else "nothing"
