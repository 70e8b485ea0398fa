"""feature_store.yaml: by which every Feast client finds the registry and the stores. Written without Feast."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import yaml
from redis.connection import SSLConnection, parse_url

from freshet.flows.edges import disk
from freshet.schemas.errors import Problem, Refused

_REFERENCE = re.compile(r"\$\{\w+\}")
_UNEXPANDED = re.compile(r"\$(?!\{\w+\})")


def store_config(project: str, online_url: str, registry_path: Path) -> dict[str, Any]:
    """Return the content of feature_store.yaml; where the history is, the views themselves say.

    `online_url` is redis://, rediss://, unix:// or sqlite:///path/to/file; a credential in it may be `${NAME}`, which
    Feast fills in from the environment when it reads the file; `apply` and `open_store` need it filled in. Raises
    `Refused` for any other URL.
    """
    return {
        "project": project,
        "provider": "local",
        "registry": {"registry_type": "file", "path": str(registry_path.absolute()), "cache_ttl_seconds": 60},
        "online_store": _online_config(online_url),
        "offline_store": {"type": "duckdb"},
        "entity_key_serialization_version": 3,
    }


def _online_config(url: str) -> dict[str, Any]:
    if url.startswith("sqlite://"):
        return {"type": "sqlite", "path": str(Path(url.removeprefix("sqlite://")).absolute())}
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        host = options.pop("host", "localhost")
        node = f"{host}:{options.pop('port', 6379)}"
        readable = ":" not in host  # Feast splits at colons
    except ValueError:  # its text may hold pieces of the password
        readable = False
    if not readable:
        hint = "write redis://host:6379/0, rediss://…, unix:///path or sqlite:///path; percent-encode user and password"
        raise Refused([Problem("key", "onlineStore", "is not an online store that Freshet knows", hint=hint)])
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    # Deleting a view would scan the whole store, and take with it projects whose names end like this one.
    return {
        "type": "redis",
        "connection_string": ",".join([node, *(f"{name}={_quoted(value)}" for name, value in options.items())]),
        "full_scan_for_deletion": False,
    }


def refuse_secret(url: str) -> None:
    """Make sure that an online store's URL may stand in a file: a password in it is `${NAME}`. Raises `Refused`."""
    try:
        options = {} if url.startswith("sqlite://") else parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:  # another one says what is wrong with it
        return
    if any(not _REFERENCE.fullmatch(options.get(name, "${NONE}")) for name in ("password", "ssl_password")):
        fact = "has a password in it, which would be written to feature_store.yaml"
        hint = "write ${NAME} in its place, here or in FRESHET_ONLINE_STORE, and export NAME"
        raise Refused([Problem("key", "onlineStore", fact, hint=hint)])


def shown(url: str) -> str:
    """Return an online store's URL as it may be shown: without user, password and options.

    >>> shown("rediss://ada:wood@cache:6380/0?ssl_ca_certs=/ca.pem"), shown("unix:///run/redis")
    ('rediss://cache:6380/0', 'unix:///run/redis')
    >>> shown("redis://ada:w/ood@cache")  # what is not percent-encoded cannot be told from what may be shown
    'redis://…'
    """
    parts = urlsplit(url)
    try:
        sound = parts.port is None or parts.port > 0
    except ValueError:
        sound = False
    rest = f"{parts.netloc.rpartition('@')[2]}{parts.path}" if sound and "@" not in parts.path else "…"
    return f"{parts.scheme}://{rest}"


def _quoted(value: object) -> str:
    r"""Write an option such that Feast, which splits at commas, fills in $ and reads JSON, has the same value again.

    >>> _quoted("0,$1"), _quoted("${REDIS_PASSWORD}"), _quoted(3)
    ('"0\\u002c\\u00241"', '"${REDIS_PASSWORD}"', '3')
    """
    return _UNEXPANDED.sub(r"\\u0024", json.dumps(value).replace(",", r"\u002c"))


def write_store_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write feature_store.yaml, all at once, readable by its owner only."""

    def write(file: IO[bytes]) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.write(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode())

    disk.replace(path, write)
