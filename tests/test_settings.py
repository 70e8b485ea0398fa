"""Settings: what is said where, which word holds, and what is said of one that cannot be used."""

from pathlib import Path

import pytest

from freshet.flows.settings import FILE, NAMES, Settings, read
from freshet.schemas.errors import Refused

SECURED = """
brokers = "kafka:9093"
epoch = "2 s"
shards = 8
[kafka]
security.protocol = "SASL_SSL"
"sasl.password" = "${KAFKA_PASSWORD}"
linger.ms = 7
enable.idempotence = true
"""


def wrote(folder: Path, text: str, name: str = FILE) -> dict[str, str]:
    (folder / name).write_text(text, encoding="utf-8")
    return {"FRESHET_PROJECT": str(folder)}


def refused(environment: dict[str, str], flags: dict[str, str] | None = None) -> str:
    with pytest.raises(Refused) as raised:
        read(environment, flags)
    return str(raised.value)


def test_nothing_said_is_the_defaults(tmp_path: Path) -> None:
    assert Settings(project=tmp_path) == read({"FRESHET_PROJECT": str(tmp_path), "FRESHET_EPOCH": ""})


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(tmp_path: Path) -> None:
    environment = wrote(tmp_path, 'epoch = "3s"\nquiet = "3s"\nround = "3s"')
    environment |= {"FRESHET_EPOCH": "2s", "FRESHET_QUIET": "2s"}

    found = read(environment, {"epoch": "1s"})

    seconds = [length.total_seconds() for length in (found.epoch, found.quiet, found.round, found.patience)]
    assert [1, 2, 3, 60] == seconds


@pytest.mark.parametrize(
    ("changes", "exporter"),
    [
        ({}, "validator"),
        ({"validator_address": "off"}, "materializer"),
        ({"validator_address": "off", "lag_export": "off"}, "off"),
        ({"lag_export": "materializer"}, "materializer"),
    ],
)
def test_without_a_validator_the_materializer_exports_the_lag(changes: dict[str, str], exporter: str) -> None:
    assert Settings(**changes).lag_exporter == exporter  # type: ignore[arg-type]


def test_the_server_s_token_may_be_the_environment_s(tmp_path: Path) -> None:
    environment = {**wrote(tmp_path, 'server_token = "${TOKEN}"'), "TOKEN": "hunter2"}

    assert read(environment).server_token == "hunter2"
    assert "TOKEN" in refused(wrote(tmp_path, 'server_token = "${TOKEN}"'))


def test_so_does_each_of_librdkafka_s_settings(tmp_path: Path) -> None:
    environment = wrote(tmp_path, '[kafka]\na.b = "file"\nc.d = "file"\ne.f = "file"')
    environment |= {"FRESHET_KAFKA_A_B": "environment", "FRESHET_KAFKA_C_D": "environment"}

    assert {"a.b": "flag", "c.d": "environment", "e.f": "file"} == read(environment, {"kafka.a.b": "flag"}).kafka


def test_the_project_s_file_is_read_and_a_secret_in_it_is_the_environment_s(tmp_path: Path) -> None:
    found = read({**wrote(tmp_path, SECURED), "KAFKA_PASSWORD": "hunter2"})

    assert ("kafka:9093", 8) == (found.brokers, found.shards)
    assert {
        "security.protocol": "SASL_SSL",
        "sasl.password": "hunter2",
        "linger.ms": "7",
        "enable.idempotence": "true",
    } == found.kafka


def test_another_file_may_be_named_and_must_be_there_then(tmp_path: Path) -> None:
    wrote(tmp_path, 'brokers = "one:1"')
    wrote(tmp_path, 'brokers = "two:2"', "other.toml")
    named = {"FRESHET_PROJECT": str(tmp_path), "FRESHET_SETTINGS": str(tmp_path / "other.toml")}

    assert "two:2" == read(named).brokers
    assert "one:1" == read(named | {"FRESHET_SETTINGS": ""}).brokers
    gone = refused({"FRESHET_SETTINGS": str(tmp_path / "gone.toml")})
    assert f'settings file "{tmp_path}/gone.toml" cannot be read: No such file or directory' == gone


WRONG = {
    "brokr = 'x'": 'setting "brokr" is unknown. Hint: did you mean brokers?',
    "xyz = 1": 'setting "xyz" is unknown. Hint: the settings are ',
    "epoch = 'soon'": "setting \"epoch\" cannot be read; got 'soon'. Hint: write a duration such as ",
    "epoch = 5": 'setting "epoch" cannot be read; got 5. Hint: write a duration such as ',
    "shards = 65": 'setting "shards" cannot be read; got 65. Hint: write less than or equal to 64',
    "sample = 0": 'setting "sample" cannot be read; got 0. Hint: write greater than or equal to 1',
    "reject_limit = 'many'": "setting \"reject_limit\" cannot be read; got 'many'. Hint: write a valid integer",
    "log = 'xml'": "setting \"log\" cannot be read; got 'xml'. Hint: write 'text' or 'json'",
    "served_share = 1.5": 'setting "served_share" cannot be read; got 1.5. Hint: write less than or equal to 1',
    "server_concurrency = 0": 'setting "server_concurrency" cannot be read; got 0. Hint: write greater than or equal to 1',
    "lag_export = 'x'": "Hint: write 'validator', 'materializer' or 'off'",
    "brokers = 1": 'setting "brokers" cannot be read; got 1. Hint: write a valid string',
    "project = '.'": 'setting "project" is not a file\'s to say. Hint: name the folder with -C or FRESHET_PROJECT',
    "kafka.bootstrap.servers = 'x'": 'setting "kafka.bootstrap.servers" is Freshet\'s to set. Hint: write `brokers`',
    "kafka.sasl.password = '${NO_SUCH}'": 'kafka.sasl.password" names environment variables that are not set: NO_SUCH',
    "kafka = 'x'": 'setting "kafka" is unknown. Hint: ',
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_the_file_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    said = refused(wrote(tmp_path, text))

    assert WRONG[text] in said
    assert said.startswith(f"{tmp_path / FILE}: ") or "NO_SUCH" in said


@pytest.mark.parametrize("text", ["epoch: 2s", "a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_refused_without_what_is_in_it(tmp_path: Path, text: str) -> None:
    assert f'settings file "{tmp_path / FILE}" cannot be read: ' in refused(wrote(tmp_path, text))


def test_a_file_that_is_not_text_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff")
    assert "cannot be read: 'utf-8' codec" in refused({"FRESHET_PROJECT": str(tmp_path)})
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    assert "cannot be read: Is a directory" in refused({"FRESHET_PROJECT": str(tmp_path)})


def test_all_that_is_wrong_is_said_at_once_each_as_it_is_written(tmp_path: Path) -> None:
    environment = wrote(tmp_path, "epohc = 1") | {"FRESHET_BROKER": "x", "FRESHET_SHARDS": "0"}

    said = refused(environment, {"quite": "1s", "round": "soon"})

    assert 'setting "epohc" is unknown. Hint: did you mean epoch?' in said
    assert 'variable "FRESHET_BROKER" is unknown. Hint: did you mean FRESHET_BROKERS?' in said
    assert "variable \"FRESHET_SHARDS\" cannot be read; got '0'" in said
    assert 'flag "--set quite" is unknown. Hint: did you mean --set quiet?' in said
    assert "flag \"--set round\" cannot be read; got 'soon'" in said


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    text = "online_store = 'redis://:hunter2@h'\nwebhook = 'https://h/hunter2'\nkafka.sasl.password = 'hunter2'"
    found = read(wrote(tmp_path, f"{text}\nserver_token = 'hunter2'"))

    assert (found.online_store, found.server_token) == ("redis://:hunter2@h", "hunter2")
    assert "hunter2" not in repr(found)
    assert "hunter2" not in refused(
        wrote(tmp_path, "online_store = ['hunter2']\nwebhook = ['hunter2']\nserver_token = ['hunter2']")
    )
    assert "hunter2" not in refused(wrote(tmp_path, "online_store = hunter2"))


def test_every_setting_stands_in_the_module_s_table() -> None:
    import freshet.flows.settings as module  # noqa: PLC0415  # its docstring

    assert module.__doc__ is not None
    documented = {line.split("|")[1].strip() for line in module.__doc__.splitlines() if line.startswith("| FRESHET_")}
    assert {f"FRESHET_{name.upper()}" for name in (*NAMES, "settings")} | {"FRESHET_KAFKA_*"} == documented
