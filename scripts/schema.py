"""Event contracts and their versions: `check` holds them against the committed snapshots of all versions, and against
the samples; `snapshot` writes the one of a new version; `export` writes what producers in other languages need.

`check` exits 1 if it finds something; it says where, by which rule, and what to do. A mode is a schema registry's:
BACKWARD (the new version reads old events), FORWARD (old versions read new events), FULL (both), each of the version
before, or with _TRANSITIVE of all; NONE. It takes a writer as closed, and a reader as open as it says.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freshet.flows.edges.project import Project
from freshet.flows.settings import Settings
from freshet.flows.steps import asyncapi
from freshet.flows.steps.alerts import consumer_group
from freshet.flows.steps.evolution import Finding, findings, incompatible, is_same, json_schema, raised
from freshet.schemas.errors import listed, nearest
from freshet.schemas.event import Compatibility, Contract
from freshet.scripts.cli import wrong_use


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    deeds = words.add_subparsers(dest="deed", required=True, metavar="DEED")
    checked = deeds.add_parser("check", help="compare with the snapshots of all versions, and with the samples")
    written = deeds.add_parser("snapshot", help="write the JSON Schema of a version that has none yet, to be committed")
    exported = deeds.add_parser("export", help="write JSON Schemas and an AsyncAPI document")
    for deed in (checked, written, exported):
        deed.add_argument("--stream", help="of this stream only")
    for deed in (checked, written):
        deed.add_argument("--mode", choices=[*Compatibility], type=str.upper, help="in place of what the contract says")
    checked.add_argument("--json", action="store_true", help="print the findings as JSON")
    exported.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write to")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Check, write or export."""
    project = Project(settings.project.absolute())
    contracts = project.contracts(_streams(project, words.stream))
    match words.deed:
        case "check":
            return _check(project, contracts, _mode(words), as_json=words.json)
        case "snapshot":
            return _snapshot(project, contracts, _mode(words))
    return _export(project, contracts, settings, words.out)


def _streams(project: Project, named: str | None) -> list[str]:
    known = project.streams
    if not known:
        raise wrong_use("-C", f"{project.root} has no event contract in schemas/events", "name the project's folder")
    if named is not None and named not in known:
        meant = nearest(named, known)
        raise wrong_use("--stream", f"is {named}", f"did you mean {meant}?" if meant else f"there is {listed(known)}")
    return known if named is None else [named]


def _mode(words: argparse.Namespace) -> Compatibility | None:
    return None if words.mode is None else Compatibility(words.mode)


def _check(project: Project, contracts: Mapping[str, Contract], mode: Compatibility | None, *, as_json: bool) -> int:
    found: list[Finding] = []
    for stream, contract in contracts.items():
        snapshots, samples = project.snapshots(stream), project.samples(stream, contract.stream.version)
        own = findings(contract, snapshots, samples, mode)
        found += own
        if not as_json:
            compared = listed([str(version) for version in snapshots if version < contract.stream.version])
            used = mode or contract.stream.compatibility
            count = f"{len(own) or 'no'} finding{'' if len(own) == 1 else 's'}"
            print(f"{stream}: version {contract.stream.version}, {used} with {compared}: {count}")
    if as_json:
        print(json.dumps({"findings": [dataclasses.asdict(one) for one in found]}, indent=2))
    else:
        for one in found:
            print(one)
    return 1 if found else 0


def _snapshot(project: Project, contracts: Mapping[str, Contract], mode: Compatibility | None) -> int:
    """Write what is not there; a version that is incompatible, or was changed, is not written."""
    code = 0
    for stream, contract in contracts.items():
        version, schema, snapshots = contract.stream.version, json_schema(contract), project.snapshots(stream)
        gone = incompatible(contract, snapshots, mode or contract.stream.compatibility)
        if version in snapshots and not is_same(snapshots[version], schema):
            path, fact = f"schemas/snapshots/{stream}/{version}.json", f"version {version} has another snapshot already"
            gone = [Finding(stream, path, "changed_in_place", fact, raised(version)), *gone]
        for one in gone:
            print(one)
        if gone:
            print(f"{stream}: nothing is written")
            code = 1
        elif snapshots.get(version) == schema:
            print(f"{stream}: version {version} has its snapshot")
        else:
            path = project.write_snapshot(stream, version, schema).relative_to(project.root).as_posix()
            print(f"{stream}: wrote {path}; commit it")
    return code


def _export(project: Project, contracts: Mapping[str, Contract], settings: Settings, out: Path) -> int:
    name = project.declaration().declaration.project
    examples = {stream: _example(project, contract) for stream, contract in contracts.items()}
    texts = {f"{stream}.schema.json": json_schema(contract) for stream, contract in contracts.items()}
    texts["asyncapi.json"] = asyncapi.document(name, settings.brokers, consumer_group(name), contracts, examples)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, made in texts.items():
            (out / file).write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            print(out / file)
    except OSError as error:
        raise wrong_use("--out", f"{out} cannot be written: {error.strerror}", "name another folder") from error
    return 0


def _example(project: Project, contract: Contract) -> Any:
    """Return a good sample of the newest version, None if there is none."""
    files = project.samples(contract.name, contract.stream.version)[contract.stream.version]
    return next((json.loads(text) for file, text in files.items() if file.startswith("good-")), None)
