"""What must hold of what the validator looks at: pure.

`checks_of` turns a view's declaration into checks, each of one of the frames that `frames` makes.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from freshet.flows.steps.canaries import CanaryState
from freshet.flows.steps.frames import CLOCK_TOLERANCE, tolerance_of, types_of
from freshet.flows.steps.freshness import State
from freshet.flows.steps.statistics import DISTRIBUTION_VALUES_COUNT, alpha_of
from freshet.schemas.expected import Distribution, Reference
from freshet.schemas.finding import Cause, Check, Frame
from freshet.schemas.units import Objective, Rate
from freshet.schemas.view import Feature, View

ALPHA = alpha_of(100, timedelta(seconds=5))
"""How likely one judgement of a tolerated rate or a distribution may be a false alarm: of a hundred of them, judged as
often as the validator looks, one in 30 days."""


def checks_of(view: View, freshness_target: Objective) -> tuple[Check, ...]:
    """Return every check that a view's declaration implies; names are stable, `<view>[.<feature>].<property>`."""
    features = (check for feature in view.features for check in _feature_checks(view, feature))
    return (
        *_folder_checks(view),
        *_archive_checks(view),
        *_row_checks(view),
        *features,
        *_recomputed_checks(view),
        *_served_checks(view),
        *_freshness_checks(view, freshness_target),
        *_canary_checks(view),
    )


def _folder_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.offline_schema_is_declared",
        "every part of the offline store has the declared columns and types",
        Frame.SCHEMA,
        "ExpectColumnPairValuesToBeEqual",
        {"column_A": "declared", "column_B": "found", "ignore_row_if": "neither"},
        Cause.SCHEMA_DRIFT,
    )
    yield Check(
        f"{view.name}.offline_parts_are_there",
        "a part that was committed is there",
        Frame.PARTS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "visible"},
        Cause.LOST_OFFLINE_WRITE,
    )
    yield _pair_check(
        f"{view.name}.offline_parts_are_whole",
        "all rows that were committed are there",
        Frame.PARTS,
        ("visible", "committed"),
        Cause.PARTIAL_BATCH,
    )
    yield _pair_check(
        f"{view.name}.offline_parts_are_the_flow_s",
        "there are no more rows than were committed",
        Frame.PARTS,
        ("committed", "visible"),
        Cause.DUPLICATE_OFFLINE,
    )
    yield _pair_check(
        f"{view.name}.online_store_is_the_same",
        "the online store counts as many writes as were committed",
        Frame.STORE,
        ("counted", "committed"),
        Cause.STALE_ONLINE,
    )


def _archive_checks(view: View) -> Iterator[Check]:
    yield _pair_check(
        f"{view.name}.accepted_events_are_archived",
        "every event that was accepted is in the archive",
        Frame.ARCHIVE,
        ("archived", "accepted"),
        Cause.PARTIAL_BATCH,
    )
    yield _pair_check(
        f"{view.name}.archived_events_are_the_flow_s",
        "no more events are in the archive than were accepted",
        Frame.ARCHIVE,
        ("accepted", "archived"),
        Cause.DUPLICATE_OFFLINE,
    )
    yield _pair_check(
        f"{view.name}.committed_offsets_are_durable",
        "Kafka has no offset as committed that is not durable in both stores",
        Frame.ARCHIVE,
        ("durable", "committed"),
        Cause.LOST_OFFLINE_WRITE,
    )


def _pair_check(
    name: str, description: str, frame: Frame, columns: tuple[str, str], cause: Cause, given: str | None = None
) -> Check:
    """The first column's value is not below the second's, where both are there."""
    words = {"column_A": columns[0], "column_B": columns[1], "or_equal": True}
    arguments = {**words, "ignore_row_if": "either_value_is_missing"}
    return Check(name, description, frame, "ExpectColumnPairValuesAToBeGreaterThanB", arguments, cause, given=given)


def _row_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.entity_is_online",
        "an entity that was online has an online row",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "online_at"},
        Cause.MISSING_ENTITY,
        given="known_at",
    )
    yield Check(
        f"{view.name}.first_row_is_online",
        "an entity that has an offline row was written online",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": "online_at"},
        Cause.LOST_ONLINE_WRITE,
        given="due_at",
    )
    if view.ttl:
        yield _pair_check(
            f"{view.name}.online_row_expires",
            "the online store forgets a row once its ttl has passed",
            Frame.ROWS,
            ("may_last_until", "expires_at"),
            Cause.EXPIRED_TTL,
        )
    yield _pair_check(
        f"{view.name}.online_follows_offline",
        "an offline row was online first, or a newer one is",
        Frame.ROWS,
        ("seen_at", "offline_at"),
        Cause.LOST_ONLINE_WRITE,
        given="online_at",
    )
    yield _pair_check(
        f"{view.name}.online_does_not_go_back",
        "an online row is never replaced by an older one",
        Frame.ROWS,
        ("online_at", "seen_at"),
        Cause.OUT_OF_ORDER_OVERWRITE,
    )
    yield Check(
        f"{view.name}.online_row_is_offline",
        "an online row is offline once all is committed that it was made of",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeInSet",
        {"column": "settled_row", "value_set": ["absent"]},
        Cause.LOST_OFFLINE_WRITE,
    )
    yield Check(
        f"{view.name}.online_row_is_settled",
        "whether the online row is in the offline store is known",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeInSet",
        {"column": "offline_row", "value_set": ["pending"]},
        None,
        "warning",
    )
    yield Check(
        f"{view.name}.offline_rows_are_single",
        "each version of a row stands once in the offline store",
        Frame.ROWS,
        "ExpectColumnValuesToBeBetween",
        {"column": "offline_copies", "max_value": 1},
        Cause.DUPLICATE_OFFLINE,
    )
    yield Check(
        f"{view.name}.online_row_is_of_the_past",
        "the time of an online row has come",
        Frame.ROWS,
        "ExpectColumnValuesToBeBetween",
        {"column": "ahead_s", "max_value": CLOCK_TOLERANCE.total_seconds()},
        Cause.CLOCK_SKEW,
    )


def _feature_checks(view: View, feature: Feature) -> Iterator[Check]:
    name, online, offline = f"{view.name}.{feature.name}", f"on_{feature.name}", f"off_{feature.name}"
    tolerated = feature.expected.mismatches
    pair: dict[str, Any] = {"column_A": online, "column_B": offline, "relative_tolerance": tolerance_of(feature)}
    if tolerated:
        yield Check(
            f"{name}.mismatches_are_few",
            f"the online value equals the offline value of the same version but for {Rate(tolerated)}",
            Frame.POOL,
            "ExpectMismatchesToBeFew",
            {**pair, "rate": tolerated, "alpha": ALPHA},
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
        )
    else:
        yield Check(
            f"{name}.online_equals_offline",
            "the online value equals the offline value of the same version",
            Frame.ROWS,
            "ExpectOnlineToEqualOffline",
            pair,
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
        )
    yield Check(
        f"{name}.online_is_not_null",
        "the online value is there if the offline value of the same version is",
        Frame.ROWS,
        "ExpectColumnValuesToNotBeNull",
        {"column": online},
        Cause.NULL_ONLINE,
        features=(feature.name,),
        given=offline,
    )
    yield Check(
        f"{name}.online_has_dtype",
        f"the online value is a {feature.dtype.name}",
        Frame.ROWS,
        "ExpectColumnValuesToBeInSet",
        {"column": f"type_{feature.name}", "value_set": list(types_of(feature.dtype))},
        Cause.DTYPE,
        features=(feature.name,),
    )
    yield from _expected_checks(name, feature)


def _expected_checks(name: str, feature: Feature) -> Iterator[Check]:
    """Of what the user expects: of every single value, or, where a rate is tolerated, of many."""
    expected, online, features = feature.expected, f"on_{feature.name}", (feature.name,)
    low, high = _stored(feature, expected.minimum), _stored(feature, expected.maximum)
    if low is not None or high is not None:
        words = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        yield Check(
            f"{name}.value_is_in_range",
            f"the value is {' and '.join(words)}",
            Frame.ROWS,
            "ExpectNumbersToBeBetween",
            {"column": online, "minimum": low, "maximum": high},
            Cause.VALUE_MISMATCH,
            features=features,
        )
    if expected.allowed is not None:
        yield Check(
            f"{name}.value_is_allowed",
            f"the value is one of {', '.join(map(str, expected.allowed))}",
            Frame.ROWS,
            "ExpectColumnValuesToBeInSet",
            {"column": online, "value_set": list(expected.allowed)},
            Cause.VALUE_MISMATCH,
            features=features,
        )
    if expected.nulls == 0:
        yield Check(
            f"{name}.value_is_not_null",
            "the value is there",
            Frame.ROWS,
            "ExpectColumnValuesToNotBeNull",
            {"column": online},
            Cause.NULL_ONLINE,
            features=features,
            given="offline_part",
        )
    elif expected.nulls is not None:
        yield Check(
            f"{name}.nulls_are_few",
            f"the value is there but for {Rate(expected.nulls)}",
            Frame.POOL,
            "ExpectNullsToBeFew",
            {"column": online, "rate": expected.nulls, "alpha": ALPHA},
            Cause.NULL_ONLINE,
            features=features,
        )
    if expected.distribution is not None:
        yield _distribution_check(name, feature, expected.distribution)


def _distribution_check(name: str, feature: Feature, expected: Distribution) -> Check:
    reference = expected.reference
    arguments: dict[str, Any] = {
        "column": f"on_{feature.name}",
        "distance": expected.distance.value,
        "limit": expected.limit,
        "alpha": ALPHA,
        "least_count": DISTRIBUTION_VALUES_COUNT,
    }
    if isinstance(reference, Reference):
        own = {"bins": [*reference.bins], "categories": [*reference.categories], "weights": [*reference.weights]}
        arguments["reference"] = {**own, "count": reference.count}
    return Check(
        f"{name}.distribution_is_expected",
        f"the values' distribution is within a {expected.distance} distance of {expected.limit:g} from its reference",
        Frame.VALUES,
        "ExpectDistributionToBeNear",
        arguments,
        Cause.VALUE_MISMATCH,
        "warning",
        features=(feature.name,),
        given=f"on_{feature.name}",
        rounds=3,
        of_rounds=5,
    )


def _stored(feature: Feature, bound: float | None) -> float | None:
    """Return a bound as the store would hold it: 0.1 is a little more in 32 bits."""
    return float(np.float32(bound)) if bound is not None and feature.dtype.name == "float32" else bound


def _recomputed_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.sql_gives_the_row",
        "the declared SQL over the archived events gives a row where the offline store has one",
        Frame.RECOMPUTED,
        "ExpectColumnValuesToNotBeNull",
        {"column": "sql_version"},
        Cause.VALUE_MISMATCH,
    )
    yield _pair_check(
        f"{view.name}.no_correction_is_lost",
        "an offline row counts all archived events in its reach",
        Frame.RECOMPUTED,
        ("version", "sql_version"),
        Cause.LOST_OFFLINE_WRITE,
    )
    yield _pair_check(
        f"{view.name}.no_event_is_lost",
        "all events that an offline row counts are archived",
        Frame.RECOMPUTED,
        ("sql_version", "version"),
        Cause.PARTIAL_BATCH,
    )
    for feature in view.features:
        yield Check(
            f"{view.name}.{feature.name}.offline_equals_sql",
            "the offline value is what the declared SQL makes of the archived events",
            Frame.RECOMPUTED,
            "ExpectToAgreeWithin",
            {"column_list": [f"off_{feature.name}", f"sql_{feature.name}", f"within_{feature.name}"]},
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
            given="same_version",
        )


def _served_checks(view: View) -> Iterator[Check]:
    yield Check(
        f"{view.name}.registry_is_declared",
        "Feast's registry has the view as it is declared, or `freshet apply` must be run",
        Frame.REGISTRY,
        "ExpectColumnPairValuesToBeEqual",
        {"column_A": "declared", "column_B": "registered", "ignore_row_if": "neither"},
        Cause.SCHEMA_DRIFT,
    )
    yield Check(
        f"{view.name}.online_api_serves_the_row",
        "Feast's online API serves a row that is in the online store",
        Frame.SERVED,
        "ExpectColumnValuesToNotBeNull",
        {"column": "served_at"},
        Cause.MISSING_ENTITY,
    )
    yield _pair_check(
        f"{view.name}.online_api_serves_the_newest",
        "Feast's online API serves no older row than is in the online store",
        Frame.SERVED,
        ("served_at", "event_timestamp"),
        Cause.STALE_ONLINE,
    )
    yield Check(
        f"{view.name}.history_gives_the_row",
        "Feast's historical retrieval gives a row that is in the offline store and within its ttl",
        Frame.SERVED,
        "ExpectColumnValuesToNotBeNull",
        {"column": "given_at"},
        Cause.LOST_OFFLINE_WRITE,
    )
    for feature in view.features:
        yield Check(
            f"{view.name}.{feature.name}.online_api_equals_historical",
            "what Feast's online API serves is what its historical retrieval gives for that time",
            Frame.SERVED,
            "ExpectToAgreeWithin",
            {"column_list": [f"api_{feature.name}", f"pit_{feature.name}", f"within_{feature.name}"]},
            Cause.VALUE_MISMATCH,
            features=(feature.name,),
            given="both_at",
        )


def _freshness_checks(view: View, freshness_target: Objective) -> Iterator[Check]:
    yield _state_check(
        f"{view.name}.freshness_is_known",
        "how every partition of the source keeps up is known",
        State.UNKNOWN,
        None,
        view,
    )
    yield _state_check(
        f"{view.name}.no_partition_is_stalled",
        "the flow goes on with every partition in which events wait",
        State.STALLED,
        Cause.STALE_ONLINE,
        view,
    )
    yield _state_check(
        f"{view.name}.freshness_is_within_objective",
        f"events are online within the freshness target, {freshness_target}",
        State.BREACHED,
        Cause.STALE_ONLINE,
        view,
    )


def _state_check(name: str, description: str, state: State, cause: Cause | None, view: View) -> Check:
    """No partition is in a state."""
    features = tuple(feature.name for feature in view.features) if cause else ()
    return _none_of(name, description, Frame.FRESHNESS, "state", [state], cause, features)


def _none_of(
    name: str,
    description: str,
    frame: Frame,
    column: str,
    unwanted: Sequence[str],
    cause: Cause | None,
    features: tuple[str, ...] = (),
) -> Check:
    """A column has none of some words; without a cause that is a warning."""
    arguments = {"column": column, "value_set": [str(value) for value in unwanted]}
    severity = "critical" if cause else "warning"
    return Check(name, description, frame, "ExpectColumnValuesToNotBeInSet", arguments, cause, severity, features)


def _canary_checks(view: View) -> Iterator[Check]:
    """Of a frame that is there only if the user agreed to canaries."""
    for name, description, column, unwanted, cause in (
        (
            "canaries_are_under_way",
            "into every partition a canary was sent that the flow can accept",
            "state",
            (CanaryState.UNSENT, CanaryState.LATE),
            None,
        ),
        (
            "no_canary_is_stalled",
            "the flow goes on with every partition that has a canary in it",
            "state",
            (CanaryState.STALLED,),
            Cause.STALE_ONLINE,
        ),
        (
            "canaries_are_online",
            "of a canary whose offset is committed, the online row is as new",
            "online_row",
            ("older", "absent"),
            Cause.LOST_ONLINE_WRITE,
        ),
        (
            "canaries_are_offline",
            "of a canary whose offset is committed, there is a row offline",
            "offline_row",
            ("absent",),
            Cause.LOST_OFFLINE_WRITE,
        ),
    ):
        yield _none_of(f"{view.name}.{name}", description, Frame.CANARIES, column, unwanted, cause)
