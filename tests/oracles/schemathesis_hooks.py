"""What schemathesis cannot know: which features and entities there are. It runs in schemathesis's environment."""

import json
import os
from typing import Any

import schemathesis

LISTED = json.loads(os.environ["LISTED"])
"""What GET /features says."""
VIEWS = LISTED["feature_views"]


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: Any) -> None:
    """Let half of all right reads ask for what there is, of odd entities, so that they come as far as the store."""
    del context, kwargs
    is_right = case.meta is not None and case.meta.generation.mode.is_positive
    if is_right and isinstance(case.body, dict) and "entities" in case.body:
        chance = sum(map(ord, repr(case.body)))
        case.body = case.body if chance % 2 else reached(case.body, chance)


def reached(body: dict[str, Any], chance: int) -> dict[str, Any]:
    views = [view for place, view in enumerate(VIEWS) if chance >> (place + 1) & 1] or VIEWS[:1]
    odd = [text for text in texts(body) if text.isprintable()][:20]
    known = {name for view in views for name in view["join_keys"]}
    entities = {name: ["ada", *odd] for name in known}
    return {
        **{key: value for key, value in body.items() if key != "feature_service"},
        "features": [feature["reference"] for view in views for feature in view["features"]],
        "entities": entities,
    }


def texts(value: Any) -> list[str]:
    """Return all texts in a value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in texts(one)]
