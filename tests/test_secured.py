"""The whole of it behind TLS on both sides, SASL and ACLs: all processes and commands; and who is not let in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from secured import PASSWORD, USER, SecuredRedis, certificate, secured_redis
from stack import FRESHET, STREAM, check, free_pair, free_ports, kafka_does, prepared, until

SECURED = """
brokers = "localhost:{port}"
[kafka]
security.protocol = "SASL_SSL"
sasl.mechanism = "SCRAM-SHA-512"
sasl.username = "{user}"
sasl.password = "${{KAFKA_PASSWORD}}"
ssl.ca.location = "{ca}"
ssl.certificate.location = "{own_certificate}"
ssl.key.location = "{own_key}"
"""
PROPERTIES = """
listeners=PLAINTEXT://127.0.0.1:{own},SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{own},SASL_SSL://localhost:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={store}
listener.name.sasl_ssl.ssl.client.auth=required
ssl.truststore.type=PEM
ssl.truststore.location={trusted}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
ALLOWED = (
    (ResourceType.TOPIC, "test_", ("CREATE", "READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS")),
    (ResourceType.TOPIC, "freshet.findings", ("CREATE", "WRITE", "DESCRIBE")),
    (ResourceType.GROUP, "freshet-test_", ("READ", "DESCRIBE")),
    (ResourceType.TRANSACTIONAL_ID, "freshet-test_", ("WRITE", "DESCRIBE")),
)
"""What README says that Freshet needs."""


@pytest.fixture
def secured_kafka(real_kafka: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings file for a real Kafka that wants to know who asks, twice, and another CA."""
    del real_kafka  # its jars are used
    for name in ("kafka", "client", "other"):
        (tmp_path / name).mkdir()
    key, ca = certificate(tmp_path / "kafka")
    own_key, trusted = certificate(tmp_path / "client")
    store = tmp_path / "kafka" / "store.pem"
    store.write_text(key.read_text() + ca.read_text())
    own, (port,) = free_pair(), free_ports(1)
    properties = tmp_path / "kafka" / "properties"
    properties.write_text(PROPERTIES.format(own=own, port=port, controller=own + 1, store=store, trusted=trusted))
    environment = {**os.environ, "FRESHET_KAFKA_PORT": str(own), "FRESHET_KAFKA_PROPERTIES": str(properties)}
    kafka_does(environment, "start")
    try:
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion(USER, scram, PASSWORD.encode())
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{own}"})
        [made] = admin.alter_user_scram_credentials([user]).values()
        made.result()
        rules = [
            AclBinding(
                kind,
                name,
                ResourcePatternType.PREFIXED,
                f"User:{USER}",
                "*",
                AclOperation[what],
                AclPermissionType.ALLOW,
            )
            for kind, name, allowed in ALLOWED
            for what in allowed
        ]
        for rule in admin.create_acls(rules).values():
            rule.result()
        settings = tmp_path / "secured.toml"
        settings.write_text(SECURED.format(port=port, user=USER, ca=ca, own_certificate=trusted, own_key=own_key))
        yield {
            "settings": str(settings),
            "address": f"localhost:{port}",
            "other": str(certificate(tmp_path / "other")[1]),
        }
    finally:
        kafka_does(environment, "stop", "--wipe")


@pytest.fixture
def redis_server(redis_program: str, tmp_path: Path) -> Iterator[SecuredRedis]:
    (tmp_path / "redis").mkdir()
    with secured_redis(redis_program, tmp_path / "redis") as made:
        yield made


@pytest.mark.kafka
def test_everything_works_behind_tls_sasl_and_acls_and_a_wrong_password_ca_or_certificate_is_said(
    secured_kafka: dict[str, str], redis_server: SecuredRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    url, address = redis_server.url(password="${REDIS_PASSWORD}"), secured_kafka["address"]
    places = [f"127.0.0.1:{port}" for port in free_ports(2)]
    more = {
        "FRESHET_SETTINGS": secured_kafka["settings"],
        "KAFKA_PASSWORD": PASSWORD,
        "FRESHET_MATERIALIZER_ADDRESS": places[0],
        "FRESHET_VALIDATOR_ADDRESS": places[1],
    }
    stack = prepared(address, url, tmp_path, **more)
    stack.produce(300)

    stack.done()
    check(stack.workspace, stack.sent_count)
    stack.ended(stack.spawn([*FRESHET, "check"]), 0)
    materializer, validator = (
        stack.spawn([*FRESHET, "run", name], FRESHET_METRICS_ADDRESS=place)
        for name, place in zip(("materializer", "validator"), places, strict=True)
    )
    until(lambda: stack.spawn([*FRESHET, "status"]).wait() == 0)
    for process in (validator, materializer):
        stack.stop(process)
    garbage = stack.workspace.kafka.client(Producer)
    garbage.produce(stack.workspace.contracts[STREAM].stream.topic, b"no JSON")
    garbage.flush()
    stack.done()
    assert stack.ended(stack.spawn([*FRESHET, "dlq", "redrive"]), 1).endswith("1 would be rejected again")

    wrong = stack.ended(stack.start("--until-end", KAFKA_PASSWORD="wr0ng", FRESHET_PATIENCE="3s"), 5)
    assert f'kafka "{address}" is not available: ' in wrong
    assert wrong.endswith("Hint: user and password are FRESHET_KAFKA_SASL_USERNAME and …_PASSWORD")
    other = {"FRESHET_KAFKA_SSL_CA_LOCATION": secured_kafka["other"], "FRESHET_PATIENCE": "3s"}
    unknown = stack.ended(stack.start("--until-end", **other), 5)
    assert "certificate verify failed" in unknown
    assert "Hint: FRESHET_KAFKA_SSL_CA_LOCATION names the file of the CA" in unknown
    nameless = {
        "FRESHET_KAFKA_SSL_CERTIFICATE_LOCATION": str(tmp_path / "other" / "ca.pem"),
        "FRESHET_KAFKA_SSL_KEY_LOCATION": str(tmp_path / "other" / "key.pem"),
        "FRESHET_PATIENCE": "3s",
    }
    assert f'kafka "{address}" is not available: ' in stack.ended(stack.start("--until-end", **nameless), 5)
    written = (tmp_path / "project" / "feature_repo" / "feature_store.yaml").read_text()
    assert all(secret not in stack.log.read_text() + written for secret in (PASSWORD, "wr0ng"))
    stack.close()
