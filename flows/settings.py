"""What a process is told of its surroundings, in one place.

What is said more than once holds in this order: a flag (`--set epoch=2s`, -C, --metrics), the environment
(FRESHET_EPOCH=2s), the settings file, the declaration (its onlineStore and offlineStore), the default.

The settings file is TOML: `freshet.toml` in the project's folder, or the file that FRESHET_SETTINGS names. Its keys are
the variables' names in lower case without FRESHET_, and librdkafka's settings stand in a table of their own; there, and
in `server_token`, `${NAME}` is filled in from the environment:

    brokers = "kafka-1:9093,kafka-2:9093"
    epoch = "2 s"
    [kafka]
    security.protocol = "SASL_SSL"
    sasl.password = "${KAFKA_PASSWORD}"

An empty variable counts as none. Secrets (`kafka`, `online_store`, `webhook`, `server_token`) are never printed; a
flag is no place for them, since other users of the machine see it.

| variable | meaning | default |
| --- | --- | --- |
| FRESHET_SETTINGS | the settings file | freshet.toml of the project, if it is there |
| FRESHET_PROJECT | the project's folder | . |
| FRESHET_BROKERS | Kafka's address, host:port,… | localhost:9092 |
| FRESHET_KAFKA_* | any librdkafka setting: FRESHET_KAFKA_SASL_PASSWORD is sasl.password | |
| FRESHET_ONLINE_STORE | in place of the declared onlineStore; may use ${NAME} | |
| FRESHET_OFFLINE_STORE | in place of the declared offlineStore; may use ${NAME} | |
| FRESHET_RECOVERY | the recovery folder, kept as long as the offline store | .freshet/recovery |
| FRESHET_METRICS_ADDRESS | where /metrics, /healthz, /readyz listen | 127.0.0.1:9308, validator :9307, server :9306 |
| FRESHET_MATERIALIZER_ADDRESS | where `freshet status` asks the materializer | 127.0.0.1:9308 |
| FRESHET_MATERIALIZER_PROCESSES | how many there are, without --processes; status and Prometheus ask each | 1 |
| FRESHET_VALIDATOR_ADDRESS | where it asks the validator; `off` without one: no alert misses it | 127.0.0.1:9307 |
| FRESHET_LAG_EXPORT | which process exports lag: validator, materializer or off | validator, if there is one |
| FRESHET_SHARDS | parts of a view's state, for as many workers; to change it: --rebuild | as before; first: workers |
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
| FRESHET_SERVER_ADDRESS | where the server listens; one that is not loopback needs a token | 127.0.0.1:6566 |
| FRESHET_SERVER_TOKEN | what clients must send as `Authorization: Bearer …` | |
| FRESHET_SERVER_CERTIFICATE | a PEM file: the server speaks TLS, with FRESHET_SERVER_KEY | |
| FRESHET_SERVER_KEY | the PEM file of its key | |
| FRESHET_SERVER_CLIENT_CA | a PEM file: clients must have a certificate of that CA | |
| FRESHET_SERVER_CONCURRENCY | how many requests to one path each worker has in work at once; more get a 503 | 256 |
| FRESHET_SERVER_DEADLINE | how long a question to the online store may take | 1 s |
| FRESHET_SERVER_WORKERS | how many there are, without --workers; Prometheus asks each | 1 |
| FRESHET_SERVED_SHARE | of which share of entities, 0 to 1, it is logged what was served | 0 |
| FRESHET_RUNBOOK_URL | the URL of the runbooks' folder, for alerts to name | deploy/runbooks |
| FRESHET_GRAFANA_URL | the URL of Grafana, for alerts to name its dashboards | |
| FRESHET_LOG | text for people, or json: one object a line | text |
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from freshet.flows.edges.project import expand
from freshet.schemas import units
from freshet.schemas.errors import Problem, Refused, listed, nearest

FILE = "freshet.toml"
"""The settings file of a project."""

MATERIALIZER_ADDRESS, VALIDATOR_ADDRESS = "127.0.0.1:9308", "127.0.0.1:9307"
SERVER_METRICS_ADDRESS = "127.0.0.1:9306"
"""Where metrics are served unless a setting says otherwise; a cluster's processes, and the server's workers, are at
this port and upwards."""

SHARDS_MAX = 64
SERVER_ADDRESS = "127.0.0.1:6566"
"""Where features are served unless a setting says otherwise: the port of Feast's own server."""


def place_of(address: str, number: int) -> str:
    """Return where the process of that number listens: one port after the other, but any where any will do.

    >>> place_of("127.0.0.1:9308", 2), place_of("127.0.0.1:0", 2)
    ('127.0.0.1:9310', '127.0.0.1:0')
    """
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}" if port.isdigit() and int(port) else address


_PREFIX, _KAFKA, _SECRET = "FRESHET_", "kafka.", frozenset({"kafka", "online_store", "webhook", "server_token"})
_OF_OTHERS = frozenset(
    {"REQUIRE", "TEST_KAFKA", "DATA", "VENV", "KAFKA_DIR", "KAFKA_PORT", "KAFKA_PROPERTIES", "SOAK", "SEED"}
)
"""What the scripts around Freshet read."""


def _duration(value: object) -> object:
    return value if isinstance(value, timedelta) else units.duration(value if isinstance(value, str) else "")


def _duration_or_off(value: object) -> object:
    return None if value == "off" or value is None else _duration(value)


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=ConfigDict(hide_input_in_errors=True))
class Settings:
    """A process's surroundings. Those that may hold secrets are not part of its `repr`."""

    project: Path = Path()
    brokers: str = "localhost:9092"
    online_store: str | None = field(default=None, repr=False)
    offline_store: str | None = None
    recovery: Path = Path(".freshet/recovery")
    metrics_address: str | None = None
    materializer_address: str = MATERIALIZER_ADDRESS
    materializer_processes: Count = 1
    validator_address: str = VALIDATOR_ADDRESS
    lag_export: Literal["validator", "materializer", "off"] = "validator"
    shards: Annotated[int, Field(ge=1, le=SHARDS_MAX)] | None = None
    epoch: Duration = timedelta(seconds=1)
    patience: Duration = timedelta(seconds=60)
    reject_limit: Count = 10_000
    archive_retention: Duration = timedelta(days=90)
    round: Duration = timedelta(seconds=5)
    sample: Count = 150
    parity_every: Annotated[timedelta | None, BeforeValidator(_duration_or_off)] = timedelta(minutes=1)
    quiet: Duration = timedelta(seconds=60)
    canaries: Path | None = None
    webhook: str | None = field(default=None, repr=False)
    data_docs: Path = Path(".freshet/docs")
    data_docs_every: Duration = timedelta(minutes=10)
    server_address: str | None = None
    server_token: str | None = field(default=None, repr=False)
    server_certificate: Path | None = None
    server_key: Path | None = None
    server_client_ca: Path | None = None
    server_concurrency: Count = 256
    server_deadline: Duration = timedelta(seconds=1)
    server_workers: Count = 1
    served_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    runbook_url: str | None = None
    grafana_url: str | None = None
    log: Literal["text", "json"] = "text"
    kafka: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def has_validator(self) -> bool:
        """Whether a validator is deployed."""
        return self.validator_address != "off"

    @property
    def lag_exporter(self) -> str:
        """Which process exports lag."""
        is_missing = self.lag_export == "validator" and not self.has_validator
        return "materializer" if is_missing else self.lag_export


NAMES = tuple(made.name for made in fields(Settings) if made.name != "kafka")
"""All settings but librdkafka's."""


def read(environment: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of a process; raises `Refused` for all that is misspelt or cannot be read."""
    problems: list[Problem] = []
    flags = flags or {}
    project = Path(flags.get("project") or environment.get("FRESHET_PROJECT") or ".")
    by_file = _of_file(project, environment, problems)
    by_flag = [_Said(name, text, "flag", f"--set {name}") for name, text in flags.items()]
    heard: dict[str, _Said] = {}
    for said in [*by_file, *_of_environment(environment), *by_flag]:
        if (problem := said.problem) is not None:
            problems.append(problem)
        else:
            heard[said.name] = said
    values = {name: said.value for name, said in heard.items() if name in NAMES}
    options = {name.removeprefix(_KAFKA): said.value for name, said in heard.items() if name not in NAMES}
    try:
        found = TypeAdapter(Settings).validate_python({**values, "kafka": options})
    except ValidationError as error:
        problems += [heard[str(detail["loc"][0])].unreadable(detail) for detail in error.errors(include_url=False)]
    if problems:
        raise Refused(problems)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Said:
    """What is said of a setting: its name, how that is written where it is said, and in which file."""

    name: str
    value: Any
    kind: str
    word: str
    place: str = ""

    @property
    def problem(self) -> Problem | None:
        """What is wrong with the name."""
        if self.name == f"{_KAFKA}bootstrap.servers":
            return self._problem("is Freshet's to set", "write `brokers`, or FRESHET_BROKERS")
        if self.name.startswith(_KAFKA) or self.name in NAMES:
            return None
        meant = nearest(self.name, NAMES)
        others = f"the {self.kind}s are {listed([self._spelt(name) for name in NAMES])} and {self._spelt(_KAFKA)}*"
        return self._problem("is unknown", f"did you mean {self._spelt(meant)}?" if meant else others)

    def unreadable(self, error: ErrorDetails) -> Problem:
        """Return what is wrong with the value."""
        told = error.get("ctx", {})
        expected = (
            told.get("error") or told.get("expected") or error["msg"].removeprefix("Input should be ").split(",")[0]
        )
        return self._problem("cannot be read", f"write {expected}", "" if self.name in _SECRET else repr(self.value))

    def _problem(self, fact: str, hint: str, got: str = "") -> Problem:
        return Problem(self.kind, self.word, fact, got, hint, self.place)

    def _spelt(self, name: str) -> str:
        match self.kind:
            case "variable":
                return _PREFIX + name.upper().replace(".", "_")
            case "flag":
                return f"--set {name}"
            case _:
                return name


def _of_environment(environment: Mapping[str, str]) -> Iterator[_Said]:
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix(_PREFIX)
        if name != variable and text and name != "SETTINGS" and name not in _OF_OTHERS:
            name = name.lower()
            name = name.replace("_", ".") if name.startswith("kafka_") else name
            yield _Said(name, text, "variable", variable)


def _of_file(project: Path, environment: Mapping[str, str], problems: list[Problem]) -> Iterator[_Said]:
    named = environment.get("FRESHET_SETTINGS")
    path = Path(named) if named else project / FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if named:
            problems.append(Problem("settings file", named, f"cannot be read: {error.strerror}"))
        return
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        problems.append(Problem("settings file", str(path), f"cannot be read: {why}", hint="write TOML: name = value"))
        return
    for name, value in _flat(content):
        if name == "project":
            hint = "name the folder with -C or FRESHET_PROJECT"
            problems.append(Problem("setting", name, "is not a file's to say", hint=hint, place=str(path)))
        elif not (name.startswith(_KAFKA) or name == "server_token"):
            yield _Said(name, value, "setting", name, str(path))
        else:
            try:
                text = expand(value, name, environment) if isinstance(value, str) else str(value).lower()
            except Refused as refusal:
                problems += refusal.problems
            else:
                yield _Said(name, text, "setting", name, str(path))


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Join again what TOML takes apart at dots."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
