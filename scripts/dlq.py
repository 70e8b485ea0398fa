"""The dead letters: events that were not accepted, in `<topic>.dlq`. `list` shows them, `redrive` sends them again.

A time is ISO, or a duration ago such as 2h; it is compared with Kafka's own time of the event. Each letter is redriven
once, and only if the flow would accept it now; exits 1 if it would reject one again, which then stays.
"""

import argparse
import base64
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from freshet.flows.edges import kafka
from freshet.flows.edges.dead_letters import Redriver
from freshet.flows.edges.partitions import records
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.settings import Settings
from freshet.flows.steps.intake import Intake
from freshet.flows.steps.redrive import Again, Gathered, Judged, Letter, Wanted, gather, in_order, judge
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import listed, nearest
from freshet.schemas.rejects import Reason, Reject, dead_letter_topic
from freshet.schemas.units import count_us, duration, instant_us
from freshet.scripts.cli import wrong_use
from freshet.scripts.replay import chosen_stream

LOG = logging.getLogger("freshet")

_EVENT_CHARACTERS = 160
_TRANSACTION_LETTERS = 500


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    deeds = words.add_subparsers(dest="deed", required=True, metavar="DEED")
    shown = deeds.add_parser("list", help="show the events, why they were not accepted, and how many for each reason")
    sent = deeds.add_parser("redrive", help="send the events again that would be accepted now")
    for deed in (shown, sent):
        deed.add_argument("--stream", help="of this stream only")
        deed.add_argument("--reason", metavar="R[,R]", help=f"for these reasons only: {listed([*Reason])}")
        deed.add_argument("--since", metavar="TIME", help="from this time on")
        deed.add_argument("--until", metavar="TIME", help="before this time")
        deed.add_argument("--limit", type=int, metavar="N", help="no more than the first N, by time")
        deed.add_argument("--json", action="store_true", help="print everything as JSON")
    shown.add_argument("--all", action="store_true", help="also those that were redriven")
    sent.add_argument("--dry-run", action="store_true", help="only say what would be done")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """List or redrive."""
    now_us = time.time_ns() // 1000
    wanted = _wanted(words, now_us)
    workspace = Workspace.applied(settings)
    streams = [chosen_stream(workspace, words.stream)] if words.stream else sorted(workspace.contracts)
    return (
        _list(words, workspace, streams, wanted)
        if words.deed == "list"
        else _redrive(words, workspace, streams, wanted, now_us)
    )


def _wanted(words: argparse.Namespace, now_us: int) -> Wanted:
    if words.limit is not None and words.limit < 1:
        raise wrong_use("--limit", f"is {words.limit}", "write a number of at least 1")
    return Wanted(
        reasons=None if words.reason is None else frozenset(_reason(one.strip()) for one in words.reason.split(",")),
        since_ms=None if words.since is None else _instant_ms("--since", words.since, now_us),
        until_ms=None if words.until is None else _instant_ms("--until", words.until, now_us),
        limit=words.limit,
        redriven_too=words.deed == "list" and words.all,
    )


def _reason(word: str) -> Reason:
    if word not in set(Reason):
        meant = nearest(word, Reason)
        hint = f"did you mean {meant}?" if meant else f"use {listed([*Reason])}"
        raise wrong_use("--reason", f"names {word!r}", hint)
    return Reason(word)


def _instant_ms(flag: str, text: str, now_us: int) -> int:
    """Read a time, or a duration before now."""
    try:
        return (now_us - count_us(duration(text))) // 1000
    except ValueError:
        pass
    try:
        return -(-instant_us(datetime.fromisoformat(text)) // 1000)  # up: Kafka's times are whole milliseconds
    except ValueError:
        raise wrong_use(flag, f"is {text}", "write a time such as 2026-03-01T12:00Z, or a duration ago: 2h") from None


def _gather(workspace: Workspace, stream: str, wanted: Wanted) -> Gathered:
    topic = workspace.contracts[stream].stream.topic
    return gather(topic, records(workspace.kafka, dead_letter_topic(topic)), wanted)


def _list(words: argparse.Namespace, workspace: Workspace, streams: Sequence[str], wanted: Wanted) -> int:
    gathered = [_gather(workspace, stream, wanted) for stream in streams]
    letters = in_order(gathered, wanted.limit)
    reasons = Counter(letter.reject.reason.value for letter in letters)
    others_count = sum(one.others_count for one in gathered)
    if words.json:
        plain = [_plain(letter) for letter in letters]
        print(json.dumps({"letters": plain, "reasons": dict(reasons), "others": others_count}, indent=2))
        return 0
    for letter in letters:
        reject = letter.reject
        again = ", redriven" if letter.redriven else ""
        print(f"{_time(reject.timestamp_ms)} {reject.origin} {reject.reason}{again}: {_escaped(reject.detail)}")
        print(f"    {_shown(reject.value)}")
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    at_most = "" if wanted.limit is None else f", of --limit {wanted.limit}"
    print(f"{len(letters)} dead letters{at_most}: {counts}" if letters else "no dead letters")
    if others_count:
        print(f"{others_count} records beside them are not Freshet's")
    return 0


def _redrive(
    words: argparse.Namespace, workspace: Workspace, streams: Sequence[str], wanted: Wanted, now_us: int
) -> int:
    for stream in streams:  # what is not there is said before anybody is stopped
        kafka.partitions_count(workspace.kafka, dead_letter_topic(workspace.contracts[stream].stream.topic))
    # Opened before anything is read: whoever redrives at the same time can commit nothing that is not read here.
    redriver = None if words.dry_run else Redriver(workspace.kafka, workspace.group)
    letters = in_order([_gather(workspace, stream, wanted) for stream in streams], wanted.limit)
    judged = [_judge(workspace, stream, letters, now_us) for stream in streams]
    fit = [reject for one in judged for reject in one.fit]
    again = [found for one in judged for found in one.again]
    for start in range(0, len(fit), _TRANSACTION_LETTERS):
        if redriver is not None:
            redriver.send(fit[start : start + _TRANSACTION_LETTERS])
            if len(fit) > _TRANSACTION_LETTERS:
                done = min(start + _TRANSACTION_LETTERS, len(fit))
                print(f"{done} of {len(fit)} redriven", file=sys.stderr)
    if words.json:
        print(json.dumps(_told(fit, again, dry_run=words.dry_run), indent=2))
    else:
        for found in again:
            print(f"{found.reject.origin} stays, {found.reason} again: {_escaped(found.detail)}")
        would = "would be " if words.dry_run else ""
        print(f"{len(fit)} events {would}redriven, {len(again)} would be rejected again")
    return 1 if again else 0


def _judge(workspace: Workspace, stream: str, letters: Sequence[Letter], now_us: int) -> Judged:
    contract = workspace.contracts[stream]
    rejects = [letter.reject for letter in letters if letter.reject.topic == contract.stream.topic]
    if not rejects:
        return Judged((), ())
    count = kafka.partitions_count(workspace.kafka, contract.stream.topic)
    intake = Intake(contract, workspace.pipeline.of_source(stream))
    return judge(rejects, intake, _newest_us(workspace, stream), count, now_us)


def _newest_us(workspace: Workspace, stream: str) -> dict[tuple[str, int], int]:
    """Return the greatest event time of each partition, as the materializer judged it last."""
    ledger = LedgerFile(workspace.offline_root).read()
    if ledger is None:
        LOG.warning("nothing is materialized yet, so lateness is not judged")
        return {}
    return {(stream, number): mark.newest_us for number, mark in ledger.partitions_of(stream).items()}


def _told(fit: Sequence[Reject], again: Sequence[Again], *, dry_run: bool) -> dict[str, Any]:
    return {
        "dryRun": dry_run,
        "redriven": [str(reject.origin) for reject in fit],
        "again": [
            {"origin": str(found.reject.origin), "reason": found.reason.value, "detail": found.detail}
            for found in again
        ],
    }


def _plain(letter: Letter) -> dict[str, Any]:
    """Return a letter as JSON has it; bytes that are no UTF-8 are base64."""
    reject = letter.reject
    return {
        "time": _time(reject.timestamp_ms),
        "topic": reject.topic,
        "partition": reject.partition,
        "offset": reject.offset,
        "reason": reject.reason.value,
        "detail": reject.detail,
        "key": _json(reject.key),
        "value": _json(reject.value),
        "headers": [[name, _json(value)] for name, value in reject.headers],
        "redriven": letter.redriven,
    }


def _json(content: bytes | None) -> object:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _shown(content: bytes | None) -> str:
    r"""Return an event for a terminal: one line, no control characters, not too long.

    >>> print(_shown(b"\x1b[31m red \xff"), _shown(None))
    \x1b[31m red \xff (no value)
    """
    if content is None:
        return "(no value)"
    text = content.decode(errors="backslashreplace")
    cut = f"… {len(content)} bytes" if len(text) > _EVENT_CHARACTERS else ""
    return _escaped(text[:_EVENT_CHARACTERS]) + cut


def _escaped(text: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _time(milliseconds: int) -> str:
    """Write a time, whatever it is: a producer gives it.

    >>> _time(1772366400500), _time(10**17)
    ('2026-03-01T12:00:00.500Z', '3170843-11-07T09:46:40.000Z')
    """
    return "-" if milliseconds < 0 else f"{np.datetime64(milliseconds, 'ms')}Z"
