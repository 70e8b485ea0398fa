"""What peers are measured on: the same backlog, project and stores as Freshet, and what each must have online at its end."""

import dataclasses
import fcntl
import json
import math
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import redis
import yaml
from feast import FeatureStore, FeatureView, FileSource, PushSource
from feast.data_format import ParquetFormat
from peer_meter import HOPS, LENGTHS_MS, NAMES, Task
from pipeline_rig import Cluster, Project, Watched
from pipeline_work import ENTITY, SECTIONS, VIEW, Visits

from freshet.schemas.errors import Unavailable

HERE = Path(__file__).parent
_ASKED_COUNT, _LIKE = 200, 1e-9

Since = Callable[[int, int], int]
"""Where a window of so many ms begins whose value is online after an event at some ms."""


def sliding(at_ms: int, length_ms: int) -> int:
    """As declared."""
    return at_ms - length_ms


def longest_hopping(at_ms: int, length_ms: int) -> int:
    """The first window under way that holds the event.

    >>> longest_hopping(600_000, 600_000), longest_hopping(659_999, 600_000)
    (60000, 60000)
    """
    return _hop(at_ms - length_ms, length_ms) + length_ms // HOPS


def last_hopping(at_ms: int, length_ms: int) -> int:
    """The window that opened last, if the end of the topic closes all.

    >>> last_hopping(600_000, 600_000), last_hopping(659_999, 600_000)
    (600000, 600000)
    """
    return _hop(at_ms, length_ms)


def _hop(at_ms: int, length_ms: int) -> int:
    step_ms = length_ms // HOPS
    return at_ms // step_ms * step_ms


@dataclass(frozen=True)
class Peer:
    """How a peer is run, and what it makes."""

    module: str
    since: Since | None = sliding
    """None: what it has online is not for looking at."""
    is_split: bool = False
    """Each window is a view of its own."""
    entry: str = "main"
    environment: str | None = None
    """The name of its own one."""
    share: float = 1.0
    """Of how many events, one that would take too long for all."""
    more: Mapping[str, Any] = field(default_factory=dict)


_QUIX = {"module": "peer_quix", "is_split": True, "environment": "quix"}
PEERS = {
    "feast-push": Peer("peer_push", more={"all": False}),
    "feast-push-all": Peer("peer_push", more={"all": True}),
    "bytewax-fold": Peer("peer_bytewax", last_hopping, is_split=True),
    "quix-hopping": Peer(**_QUIX, since=longest_hopping, more={"windows": "hopping", "changelog": False}),
    "quix-sliding": Peer(**_QUIX, share=0.1, more={"windows": "sliding", "changelog": False}),
    "push-alone": Peer("peer_push", None, entry="push_alone"),
}


# --- environments -----------------------------------------------------------------------------------------------------


def python_of(name: str | None, *, make: bool = True) -> str | None:
    """Return the Python of an environment, ours without a name; made as its lock file says, or None if it is not there.

    Raises `Unavailable` if it cannot be made.
    """
    if name is None:
        return sys.executable
    lock, folder = HERE / f"{name}.lock", Path(sys.prefix) / "peers" / name
    python, stamp = folder / "bin" / "python", folder / ".freshet-stamp"
    wanted = sys.version + lock.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return str(python)
    if not make:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".freshet-making").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        install = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock]
        for command in ([sys.executable, "-m", "venv", folder], install):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise Unavailable(f"the environment {name} cannot be made: {(made.stderr or made.stdout)[-500:]}")
        stamp.write_text(wanted, encoding="utf-8")
    return str(python)


# --- a run ------------------------------------------------------------------------------------------------------------


def run(name: str, cluster: Cluster, visits: Visits, batch: int) -> dict[str, Any]:
    """Let a peer do all of the work; return how fast, what it took, and whether it is right."""
    peer = PEERS[name]
    topic = cluster.backlog(visits)
    with Project.made(cluster, topic) as project:
        _register(project)
        folder = project.root / "peer"
        folder.mkdir()
        if peer.entry == "push_alone":
            (folder / "events").write_bytes(b"\n".join(value for _, value, _ in visits.messages()))
        group = f"{name}-{uuid.uuid4().hex[:8]}"
        repo = str(project.root / "peer_repo")
        task = Task(cluster.address, topic, group, visits.count, repo, str(folder), batch, peer.more)
        python = python_of(peer.environment)
        assert python is not None
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); from {peer.module} import {peer.entry}; {peer.entry}()"
        command = (python, "-c", code, json.dumps(dataclasses.asdict(task)))
        with redis.Redis.from_url(project.redis_url) as client:
            before_s = _cpu_s(client)
            process = Watched(command, {}, project.root / "peer.log")
            try:
                process.wait()
            finally:
                process.end()
            redis_cpu_s = _cpu_s(client) - before_s
        found = _told(process)
        found |= {"whole_cpu_s": process.cpu_s, "redis_cpu_s": redis_cpu_s, "batch": batch}
        if peer.since is not None:
            found |= checked(FeatureStore(repo_path=repo), peer, visits)
    return found


def _told(process: Watched) -> dict[str, Any]:
    """Return the line that a peer printed."""
    lines = process.log.read_text(encoding="utf-8", errors="replace").splitlines()
    line = next((line for line in reversed(lines) if line.startswith('{"events_count"')), None)
    if line is None:
        raise Unavailable(f"{process.command[-2]} told nothing:\n{process.said()}")
    found: dict[str, Any] = json.loads(line)
    return found


def _cpu_s(client: redis.Redis) -> float:
    told = client.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


def _register(project: Project) -> None:
    """Make the repository of a tuned Feast, and register each window's features as a view of their own beside the whole.

    No request looks after the registry's file, and no write asks what stands there already: there is one writer, and what
    it writes is in order.
    """
    repo = project.root / "feature_repo"
    store = FeatureStore(repo_path=repo)
    whole = store.get_feature_view(VIEW)
    made = []
    for short, names in NAMES.items():
        files = FileSource(
            name=f"{VIEW}_{short}_files",
            path=str(project.root / "rows" / short),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        schema = [one for one in whole.schema if one.name in (ENTITY, *names)]
        source = PushSource(name=f"{VIEW}_{short}_push_source", batch_source=files)
        made.append(
            FeatureView(
                name=f"{VIEW}_{short}", entities=[store.get_entity(ENTITY)], schema=schema, source=source, ttl=whole.ttl
            )
        )
    store.apply(made)
    config = yaml.safe_load((repo / "feature_store.yaml").read_text(encoding="utf-8"))
    config["registry"] |= {"cache_mode": "thread", "cache_ttl_seconds": 86_400}
    config["online_store"] |= {"skip_dedup": True}
    config["offline_store"] = {"type": "dask"}  # of all stores the one that needs nothing more; no peer asks it
    tuned = project.root / "peer_repo"  # as deep as the other: the registry's path is relative
    tuned.mkdir()
    shutil.copy(repo / "feature_store.yaml", tuned)
    (tuned / "feature_store.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


# --- whether it is right ----------------------------------------------------------------------------------------------


def checked(store: FeatureStore, peer: Peer, visits: Visits) -> dict[str, Any]:
    """Look at what is online of the busiest users and of others; return how many users are wrong, and the first."""
    wanted = dict(expected(visits, peer.since or sliding))
    users = list(wanted)
    views = {name: f"{VIEW}_{short}" if peer.is_split else VIEW for short, names in NAMES.items() for name in names}
    answer = store.get_online_features(
        [f"{view}:{name}" for name, view in views.items()], [{ENTITY: user} for user in users]
    ).to_dict()
    wrong = [
        f"{user}.{name}: {answer[name][place]}, not {wanted[user][name]}"
        for place, user in enumerate(users)
        for name in views
        if not are_alike(answer[name][place], wanted[user][name])
    ]
    wrong_users = {line.partition(".")[0] for line in wrong}
    return {"asked_count": len(users), "wrong_count": len(wrong_users), "first_wrong": wrong[0] if wrong else ""}


def are_alike(one: float | None, other: float | None) -> bool:
    """Say whether two values are the same but for what floats lose; null is like null alone."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_LIKE)


def expected(visits: Visits, since: Since) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Give users, and the features that each has after its last event."""
    chunks = list(visits.columns())
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    users, counts = np.unique(columns["user"], return_counts=True)
    busiest = users[np.argsort(-counts, kind="stable")[: _ASKED_COUNT // 10]]
    others = np.random.default_rng(1).permutation(users)[: _ASKED_COUNT - len(busiest)]
    for user in dict.fromkeys([*busiest.tolist(), *others.tolist()]):
        own = columns["user"] == user
        yield f"u{user}", features({name: values[own] for name, values in columns.items()}, since)


def features(own: Mapping[str, npt.NDArray[Any]], since: Since) -> dict[str, float | None]:
    """Return a user's features after the last of its events."""
    last_ms = int(own["at_ms"][-1])
    held: dict[str, Mapping[str, npt.NDArray[Any]]] = {
        short: {name: values[own["at_ms"] >= since(last_ms, length_ms)] for name, values in own.items()}
        for short, length_ms in LENGTHS_MS.items()
    }
    short, long = held["10m"], held["1h"]
    counted = long["amount"][long["section"] == SECTIONS.index(SECTIONS[0])]
    return {
        "visits_count_10m": len(short["at_ms"]),
        "amount_sum_10m": int(short["amount"].sum()),
        "seconds_avg_10m": math.fsum(short["seconds"]) / len(short["at_ms"]),
        "visits_count_1h": len(long["at_ms"]),
        "amount_sum_1h": int(long["amount"].sum()),
        "amount_max_1h": int(long["amount"].max()),
        "seconds_min_1h": float(long["seconds"].min()),
        "arts_share_1h": float(counted.sum() / len(long["at_ms"])) if len(counted) else None,
    }


def missing(names: Sequence[str]) -> list[str]:
    """Return which of these peers lack their environment."""
    return [name for name in names if name in PEERS and python_of(PEERS[name].environment, make=False) is None]
