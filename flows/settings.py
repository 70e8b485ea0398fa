"""What a process is told by its environment, in one place; flags of the command win over it.

| variable | meaning | default |
| --- | --- | --- |
| FRESHET_PROJECT | the project's folder | . |
| FRESHET_BROKERS | Kafka's address, host:port,… | localhost:9092 |
| FRESHET_KAFKA_* | any librdkafka setting: FRESHET_KAFKA_SASL_PASSWORD is sasl.password | |
| FRESHET_ONLINE_STORE | in place of the declared onlineStore | |
| FRESHET_OFFLINE_STORE | in place of the declared offlineStore | |
| FRESHET_RECOVERY | the recovery folder, kept as long as the offline store | .freshet/recovery |
| FRESHET_METRICS_ADDRESS | where /metrics and /healthz listen | 127.0.0.1:9308, the validator's 127.0.0.1:9307 |
| FRESHET_MATERIALIZER_ADDRESS | where `freshet status` asks the materializer | 127.0.0.1:9308 |
| FRESHET_VALIDATOR_ADDRESS | where it asks the validator | 127.0.0.1:9307 |
| FRESHET_LAG_EXPORT | which process exports lag: validator, materializer or off | validator |
| FRESHET_SHARDS | in how many parts an entity space is kept; frozen once there is state | 4 |
| FRESHET_EPOCH | how often parquet parts are made and offsets committed | 1 s |
| FRESHET_PATIENCE | how long an outage of Kafka or the online store is waited out | 60 s |
| FRESHET_REJECT_LIMIT | after how many rejects in a row the flow stops | 10000 |
| FRESHET_ARCHIVE_RETENTION | how long accepted events are kept beside the features | 90 days |
| FRESHET_ROUND | how often the validator looks at both stores | 5 s |
| FRESHET_SAMPLE | how many entities of each view it chooses in a round | 150 |
| FRESHET_PARITY_EVERY | how often it asks Feast itself about a few rows of each view; `off` for never | 1 minute |
| FRESHET_QUIET | how long a check must have held before its finding is over | 60 s |
| FRESHET_CANARIES | a YAML or JSON file of events that the validator may publish into the streams' topics | |
| FRESHET_WEBHOOK | an http:// or https:// URL that findings are posted to; may use ${NAME} | |
| FRESHET_DATA_DOCS | the folder of the validator's Data Docs | .freshet/docs |
| FRESHET_DATA_DOCS_EVERY | how often a page of each view is written though no finding opens or ends | 10 minutes |
| FRESHET_LOG | json or text | text |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from freshet.schemas import units
from freshet.schemas.errors import Problem, Refused, listed, nearest

_KAFKA = "FRESHET_KAFKA_"
MATERIALIZER_ADDRESS, VALIDATOR_ADDRESS = "127.0.0.1:9308", "127.0.0.1:9307"
"""Where metrics are served unless a setting says otherwise; a cluster's processes are at this port and upwards."""


@dataclass(frozen=True)
class Settings:
    """A process's surroundings. Secrets are in `kafka` and `webhook`, which are never printed."""

    project: Path = Path()
    brokers: str = "localhost:9092"
    online_store: str | None = None
    offline_store: str | None = None
    recovery: Path = Path(".freshet/recovery")
    metrics_address: str | None = None
    materializer_address: str = MATERIALIZER_ADDRESS
    validator_address: str = VALIDATOR_ADDRESS
    lag_export: str = "validator"
    shards: int = 4
    epoch: timedelta = timedelta(seconds=1)
    patience: timedelta = timedelta(seconds=60)
    reject_limit: int = 10_000
    archive_retention: timedelta = timedelta(days=90)
    round: timedelta = timedelta(seconds=5)
    sample: int = 150
    parity_every: timedelta | None = timedelta(minutes=1)
    quiet: timedelta = timedelta(seconds=60)
    canaries: Path | None = None
    webhook: str | None = field(default=None, repr=False)
    data_docs: Path = Path(".freshet/docs")
    data_docs_every: timedelta = timedelta(minutes=10)
    log: str = "text"
    kafka: Mapping[str, str] = field(default_factory=dict, repr=False)


def _duration_or_off(text: str) -> timedelta | None:
    return None if text == "off" else units.duration(text)


def _exporter(text: str) -> str:
    if text not in {"validator", "materializer", "off"}:
        raise ValueError("validator, materializer or off")  # what is written here ends the hint
    return text


_READ: dict[str, Callable[[str], object]] = {
    "project": Path,
    "recovery": Path,
    "lag_export": _exporter,
    "shards": int,
    "reject_limit": int,
    "epoch": units.duration,
    "patience": units.duration,
    "archive_retention": units.duration,
    "round": units.duration,
    "sample": int,
    "parity_every": _duration_or_off,
    "quiet": units.duration,
    "canaries": Path,
    "data_docs": Path,
    "data_docs_every": units.duration,
}
_OF_OTHERS = frozenset(
    f"FRESHET_{name}" for name in ("REQUIRE", "TEST_KAFKA", "DATA", "VENV", "KAFKA_DIR", "KAFKA_PORT", "SOAK", "SEED")
)
"""What the scripts around Freshet read."""


def read(environment: Mapping[str, str]) -> Settings:
    """Read the settings of a process; raises `Refused` for a variable that is misspelt or cannot be read."""
    found: dict[str, object] = {}
    kafka: dict[str, str] = {}
    problems: list[Problem] = []
    known = {f"FRESHET_{name.upper()}": name for name in Settings.__dataclass_fields__ if name != "kafka"}
    for variable, text in sorted(environment.items()):
        if not variable.startswith("FRESHET_") or variable in _OF_OTHERS or not text:
            continue
        name = known.get(variable)
        if name is not None:
            try:
                found[name] = _READ.get(name, str)(text)
            except ValueError as error:
                problems.append(Problem("variable", variable, "cannot be read", repr(text), f"write {error}"))
        elif variable.startswith(_KAFKA):
            kafka[variable.removeprefix(_KAFKA).lower().replace("_", ".")] = text
        else:
            meant = nearest(variable, known)
            hint = f"did you mean {meant}?" if meant else f"the variables are {listed(tuple(known))} and {_KAFKA}*"
            problems.append(Problem("variable", variable, "is unknown", hint=hint))
    shards = found.get("shards", 1)
    if isinstance(shards, int) and not 1 <= shards <= 64:
        problems.append(Problem("variable", "FRESHET_SHARDS", "is out of range", str(shards), "write 1 to 64"))
    sample = found.get("sample", 1)
    if isinstance(sample, int) and sample < 1:
        problems.append(Problem("variable", "FRESHET_SAMPLE", "is out of range", str(sample), "write 1 or more"))
    if problems:
        raise Refused(problems)
    return Settings(**found, kafka=kafka)  # type: ignore[arg-type]  # every reader above returns its field's type
