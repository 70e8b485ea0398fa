"""What producers in other languages need to know, as an AsyncAPI 3.0 document: topics, keys, headers, events. Pure.

Source of the format: AsyncAPI 3.0.0, and its Kafka bindings 0.5.0. A schema's own definitions stand among the
components, since references begin at the document's root.
"""

from collections.abc import Mapping
from typing import Any

from freshet.schemas.event import VERSION_HEADER, Contract, json_schemas

_BINDING = "0.5.0"


def document(
    project: str, brokers: str, group: str, contracts: Mapping[str, Contract], examples: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the document of a project's streams; `brokers` as host:port,…, `examples` by stream an event."""
    addresses = [address.strip() for address in brokers.split(",") if address.strip()]
    servers = {
        f"kafka{number if number > 1 else ''}": {"host": address, "protocol": "kafka"}
        for number, address in enumerate(addresses, start=1)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Freshet: {project}",
            "version": ".".join(str(contract.stream.version) for contract in contracts.values()) or "1",
            "description": "The events that features are made of. Keys choose partitions by murmur2, as Java's client"
            " does (librdkafka: partitioner=murmur2_random).",
        },
        "defaultContentType": "application/json",
        "servers": servers,
        "channels": {name: _channel(contract) for name, contract in contracts.items()},
        "operations": {f"receive_{name}": _receive(name, group) for name in contracts},
        "components": {
            "messages": {name: _message(contract, examples.get(name)) for name, contract in contracts.items()},
            "schemas": json_schemas(contracts),
        },
    }


def _channel(contract: Contract) -> dict[str, Any]:
    stream = contract.stream
    return {
        "address": stream.topic,
        "messages": {contract.name: {"$ref": f"#/components/messages/{contract.name}"}},
        "bindings": {"kafka": {"topic": stream.topic, "partitions": stream.partitions, "bindingVersion": _BINDING}},
    }


def _receive(name: str, group: str) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        "bindings": {"kafka": {"groupId": {"type": "string", "enum": [group]}, "bindingVersion": _BINDING}},
    }


def _message(contract: Contract, example: Any) -> dict[str, Any]:
    stream = contract.stream
    version = {"type": "string", "enum": [str(stream.version)], "description": "which version the event follows"}
    made: dict[str, Any] = {
        "name": contract.name,
        "title": f"{contract.name}, version {stream.version}",
        "contentType": "application/json",
        "headers": {"type": "object", "properties": {VERSION_HEADER: version}, "required": [VERSION_HEADER]},
        "payload": {"$ref": f"#/components/schemas/{contract.name}"},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": f"the event's `{stream.key}`, as text in UTF-8"},
                "bindingVersion": _BINDING,
            }
        },
    }
    if example is not None:
        made["examples"] = [{"headers": {VERSION_HEADER: str(stream.version)}, "payload": example}]
    return made
