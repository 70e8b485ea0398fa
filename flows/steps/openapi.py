"""What the server says of itself: its OpenAPI 3.1 document, and the list of what can be asked. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from freshet.schemas.event import Contract, json_schemas
from freshet.schemas.serving import ENTITIES_MAX, EVENTS_MAX, FEATURES_MAX, Status
from freshet.schemas.units import spell
from freshet.schemas.view import View

_JOIN_KEYS = {"string": {"type": "string"}, "int32": {"type": "integer"}, "int64": {"type": "integer"}}
_REFUSED = {
    401: "there is no token, or a wrong one",
    404: "what is asked for is not declared",
    408: "the body did not come in time",
    413: "the body is too large",
    422: "the request cannot be read, or is wrong",
    503: "too much to do, or the store or Kafka does not answer: ask again after a second",
}


def listing(views: Sequence[View], services: Mapping[str, Sequence[str]], contracts: Mapping[str, Contract]) -> Any:
    """Return what GET /features answers: every view with its join keys and features, services and streams."""
    return {
        "feature_views": [
            {
                "name": view.name,
                "join_keys": {column.name: str(column.type) for column in view.entity},
                "ttl": spell(view.ttl) if view.ttl else None,
                "features": [
                    {
                        "name": feature.name,
                        "reference": f"{view.name}:{feature.name}",
                        "dtype": feature.dtype.name,
                        "description": feature.description,
                    }
                    for feature in view.features
                ],
            }
            for view in views
        ],
        "feature_services": [{"name": name, "feature_views": list(names)} for name, names in services.items()],
        "streams": [{"name": name, "events": f"/streams/{name}/events"} for name in contracts],
    }


def document(project: str, views: Sequence[View], contracts: Mapping[str, Contract], *, needs_token: bool) -> Any:
    """Return the OpenAPI document of a project's server."""
    paths: dict[str, Any] = {
        "/get-online-features": {"post": _read(views)},
        "/features": {"get": _operation("listFeatures", "What can be asked for", 200, {"type": "object"}, [401, 503])},
        "/healthz": {"get": _health("healthz", "Whether the store answers")},
        "/readyz": {"get": _health("readyz", "Whether this server is to be counted on")},
    }
    paths |= {f"/streams/{name}/events": {"post": _publish(name)} for name in contracts}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Freshet: {project}", "version": "1"},
        "paths": paths,
        "components": {"schemas": {"Refusal": _REFUSAL, **json_schemas(contracts)}},
    }
    if needs_token:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
    return made


_REFUSAL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}


def _read(views: Sequence[View]) -> Any:
    keys = {column.name: _JOIN_KEYS[str(column.type)] for view in views for column in view.entity}
    references = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
    asked = {
        "type": "object",
        "properties": {
            "features": {
                "type": "array",
                "items": {"type": "string", "examples": references[:1]},
                "maxItems": FEATURES_MAX,
            },
            "feature_service": {"type": ["string", "null"]},
            "entities": {
                "type": "object",
                "minProperties": 1,
                "properties": {
                    name: {"type": "array", "items": kind, "maxItems": ENTITIES_MAX} for name, kind in keys.items()
                },
                "additionalProperties": {"type": "array", "maxItems": ENTITIES_MAX},
            },
            "full_feature_names": {"type": "boolean"},
            "include_feature_view_version_metadata": {"type": "boolean"},
        },
        "required": ["entities"],
    }
    strings = {"type": "array", "items": {"type": "string"}}
    column = {
        "type": "object",
        "properties": {
            "values": {"type": "array"},
            "statuses": {"type": "array", "items": {"enum": [status.value for status in Status]}},
            "event_timestamps": {"type": "array", "items": {"type": "string", "format": "date-time"}},
        },
        "required": ["values", "statuses", "event_timestamps"],
    }
    answered = {
        "type": "object",
        "properties": {
            "metadata": {"type": "object", "properties": {"feature_names": strings}, "required": ["feature_names"]},
            "results": {"type": "array", "items": column},
        },
        "required": ["metadata", "results"],
    }
    about = "Values of features, by column: Feast's own request and response"
    made = _operation("getOnlineFeatures", about, 200, answered, [*_REFUSED], asked)
    example = {
        "features": references[:1],
        "entities": {column.name: [] for view in views[:1] for column in view.entity},
    }
    made["requestBody"]["content"]["application/json"]["example"] = example
    return made


def _publish(name: str) -> Any:
    event = {"$ref": f"#/components/schemas/{name}"}
    asked = {"oneOf": [event, {"type": "array", "items": event, "minItems": 1, "maxItems": EVENTS_MAX}]}
    place = {"type": "object", "properties": {"partition": {"type": "integer"}, "offset": {"type": "integer"}}}
    answered = {"type": "object", "properties": {"events": {"type": "array", "items": place}}, "required": ["events"]}
    about = f"Publish events of {name}, each of which Kafka has confirmed by the time of the answer"
    return _operation(f"publish_{name}", about, 202, answered, [*_REFUSED], asked)


def _health(name: str, about: str) -> Any:
    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "operationId": name,
        "summary": about,
        "security": [],
        "responses": {"200": {"description": "yes", **text}, "503": {"description": "why not", **text}},
    }


def _operation(
    name: str, about: str, status: int, answered: Any, refusals: Sequence[int], asked: Any | None = None
) -> Any:
    refused = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}}
    done = {"description": "done", "content": {"application/json": {"schema": answered}}}
    responses = {str(status): done} | {str(one): {"description": _REFUSED[one], **refused} for one in refusals}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": asked}}}} if asked else {}
    return {"operationId": name, "summary": about, **body, "responses": responses}
