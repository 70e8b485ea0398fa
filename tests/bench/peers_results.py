"""What is measured of peers, and the page that is made of what became of it.

The lines of JSON that `peers.py` records are `kind` run, tried or done; `report` reads all of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from recording import head, in_turn
from serving_results import figure, spread

SYSTEMS = {
    "freshet": "Freshet, `run materializer --until-end`",
    "feast-push": "a loop, windows in Python, `FeatureStore.push` of the newest rows, parquet",
    "feast-push-all": "a loop, windows in Python, `FeatureStore.push` of all rows, parquet",
    "bytewax-fold": "Bytewax's `fold_window`, hopping, Feast's online write",
    "quix-hopping": "Quix Streams, hopping windows, Feast's online write",
    "quix-sliding": "Quix Streams, sliding windows, Feast's online write",
    "push-alone": "`FeatureStore.push` alone, rows made before",
}
OURS = "freshet"


def turns(systems: Sequence[str], repeat_count: int) -> Iterator[tuple[int, str]]:
    """Give who is measured when: one after another, each repeat beginning with the next one.

    >>> list(turns(["a", "b"], 2))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for repeat in range(repeat_count):
        for system in in_turn(systems, repeat):
            yield repeat, system


def per_s(line: dict[str, Any]) -> float:
    """Return the events a second."""
    return float(line["events_count"] / line["seconds"])


def per_core(line: dict[str, Any]) -> float:
    """Return the events a second of CPU."""
    return float(line["events_count"] / line["cpu_s"])


def best(tried: Sequence[dict[str, Any]]) -> int:
    """Return the size of batches that took the least CPU: each is one thread's work, and a clock tells of neighbours too.

    >>> best([{"events_count": 10, "cpu_s": 2.0, "batch": 100}, {"events_count": 10, "cpu_s": 1.0, "batch": 1000}])
    1000
    """
    return int(max(tried, key=per_core)["batch"])


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return the page that recorded lines make."""
    kinds: dict[str, list[dict[str, Any]]] = {"run": [], "tried": [], "done": []}
    for line in lines:
        kinds[line["kind"]].append(line)
    parts = head("Freshet and its peers, measured", "peers", kinds["run"])
    if kinds["done"]:
        parts += ["", *table(kinds["done"]), "", *remarks(kinds["done"])]
    if kinds["tried"]:
        parts += ["", "Sizes of batches tried before, events/s a core:", "", *tried_table(kinds["tried"])]
    return "\n".join(parts) + "\n"


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was measured of each system: medians, and the least and greatest."""
    made = [
        "| | events | events/s | events/s a core | CPU s a million | of ours, a core | peak MB | rows online an event | offline | wrong |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = {line["repeat"]: per_core(line) for line in lines if line["system"] == OURS}
    for system, title in SYSTEMS.items():
        own = [line for line in lines if line["system"] == system]
        if not own:
            continue
        shares = [per_core(line) / ours[line["repeat"]] for line in own if line["repeat"] in ours]
        asked = sum(line.get("asked_count", 0) for line in own)
        wrong = f"{sum(line.get('wrong_count', 0) for line in own)} of {asked:,}" if asked else "-"
        columns = [
            title,
            f"{own[0]['events_count']:,}",
            spread([per_s(line) for line in own]),
            spread([per_core(line) for line in own]),
            spread([1e6 / per_core(line) for line in own]),
            spread(shares) if shares else "-",
            spread([line["peak_mb"] for line in own]),
            spread([line["rows_count"] / line["events_count"] for line in own]),
            spread([line["offline_count"] / line["events_count"] for line in own]),
            wrong,
        ]
        made.append(f"| {' | '.join(columns)} |")
    return made


def remarks(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what else is to be known of each system."""
    made = []
    for system, title in SYSTEMS.items():
        own = [line for line in lines if line["system"] == system]
        if not own:
            continue
        # a peer tells when its first message came; of ours only its first row is seen from outside
        starts = spread([line["start_cpu_s"] for line in own])
        started = f"{starts} s of CPU before its first message, not counted"
        if system == OURS:
            rest = spread([line["events_count"] / (line["cpu_s"] - line["start_cpu_s"]) for line in own])
            started = f"{starts} s of CPU before its first row was online, counted; without them {rest} events/s a core"
        batches = sorted({line["batch"] for line in own if "batch" in line})
        batch = f", batches of {', '.join(f'{size:,}' for size in batches)}" if batches else ""
        redis = spread([1e6 * line["redis_cpu_s"] / line["events_count"] for line in own])
        late = sum(line.get("late_count", 0) for line in own)
        wrong = next((line["first_wrong"] for line in own if line.get("first_wrong")), "")
        made.append(
            f"- {title}{batch}: Redis took {redis} s of CPU a million; {started}"
            f"{f'; {late:,} events late' if late else ''}{f'; wrong: {wrong}' if wrong else ''}."
        )
    return made


def tried_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return a core's rates with all sizes of batches."""
    sizes = sorted({line["batch"] for line in lines})
    made = [f"| | {' | '.join(f'{size:,}' for size in sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for system, title in SYSTEMS.items():
        rates = {line["batch"]: per_core(line) for line in lines if line["system"] == system}
        if rates:
            made.append(f"| {title} | {' | '.join(figure(rates.get(size)) for size in sizes)} |")
    return made
