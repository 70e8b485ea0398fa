"""Answer by jsonsubschema, in its environment: a line [one, other] of JSON Schemas in, whether one lies in other out."""

import json
import sys
from typing import Any

from jsonsubschema import isSubschema


def answer(one: Any, other: Any) -> bool | str:
    try:
        return bool(isSubschema(one, other))
    except Exception as error:  # noqa: BLE001  # whatever it cannot do, the test is to hear of it
        return f"{type(error).__name__}: {error}"


for line in sys.stdin:
    sys.stdout.write(json.dumps(answer(*json.loads(line))) + "\n")
    sys.stdout.flush()
