"""Servers that let nobody in without TLS, a name and a password; their certificates are made here."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from stack import free_ports, until

USER, PASSWORD = "freshet", "s3cret"
ALLOWED = "~* +@read +@write +@connection +@scripting +time -@dangerous"
"""What README says that Freshet needs."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key, and a certificate of localhost that is its own CA."""
    key, made = folder / "key.pem", folder / "ca.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", names, "-keyout", key, "-out", made], check=True, capture_output=True)
    return key, made


@dataclass(frozen=True)
class SecuredRedis:
    port: int
    ca: Path

    def url(self, user: str = USER, password: str = PASSWORD, *, ca: bool = True) -> str:
        return f"rediss://{user}:{password}@localhost:{self.port}/0{f'?ssl_ca_certs={self.ca}' if ca else ''}"


@contextmanager
def secured_redis(program: str, folder: Path) -> Iterator[SecuredRedis]:
    """A Redis with TLS alone, and two users: one that is allowed what Freshet needs, one that may not run scripts."""
    key, ca = certificate(folder)
    (port,) = free_ports(1)
    acl = folder / "users.acl"
    acl.write_text(
        f"user default off\nuser {USER} on >{PASSWORD} {ALLOWED}\n"
        f"user reader on >{PASSWORD} ~* +@read +@connection -@dangerous\n"
    )
    tls = ["--tls-port", str(port), "--tls-cert-file", key.with_name("ca.pem"), "--tls-key-file", key]
    command = [program, "--port", "0", *tls, "--tls-auth-clients", "no", "--bind", "127.0.0.1", "--aclfile", acl]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen([*command, "--save", "", "--dir", folder], stdout=said, stderr=said)
    made = SecuredRedis(port, ca)

    def answers() -> bool:
        assert process.poll() is None, (folder / "said").read_text()
        try:
            with redis.Redis.from_url(made.url()) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    try:
        until(answers)
        yield made
    finally:
        process.kill()
        process.wait()
