"""The declaration: the user's schema as it stands, and every refusal in its own words."""

import json
from datetime import timedelta
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from freshet.schemas import declaration
from freshet.schemas.errors import Refused
from freshet.schemas.expected import Expected

GIVEN = {
    "type": "object",
    "required": ["featureDefinitions", "servingRequirements"],
    "properties": {
        "featureDefinitions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": dict.fromkeys(["name", "dtype", "source", "transformation"], {"type": "string"}),
            },
        },
        "servingRequirements": {
            "type": "object",
            "properties": dict.fromkeys(["onlineLatency", "offlineVolume", "freshnessTarget"], {"type": "string"}),
        },
        "infrastructure": {
            "type": "object",
            "properties": dict.fromkeys(["onlineStore", "offlineStore", "computeEngine"], {"type": "string"}),
        },
    },
}
"""What the user's own schema asks for, written out anew."""

FEATURE = {"name": "edits", "dtype": "int64", "source": "wiki", "transformation": "count(*) OVER w"}
LEAST: dict[str, Any] = {"featureDefinitions": [FEATURE], "servingRequirements": {}}
FULL: dict[str, Any] = {
    "featureDefinitions": [FEATURE],
    "servingRequirements": {"onlineLatency": "p99 < 5ms", "offlineVolume": "50GB/day", "freshnessTarget": "5 minutes"},
    "infrastructure": {"onlineStore": "redis://cache:6379/1", "offlineStore": "s", "computeEngine": "bytewax"},
}


def feature(**changes: Any) -> dict[str, Any]:
    return {**LEAST, "featureDefinitions": [{**FEATURE, **changes}]}


def without(key: str) -> dict[str, Any]:
    return {**LEAST, "featureDefinitions": [{name: value for name, value in FEATURE.items() if name != key}]}


def refusal(text: str) -> list[str]:
    with pytest.raises(Refused) as raised:
        declaration.read(text)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize("document", [LEAST, FULL])
def test_what_the_users_schema_allows_is_read_from_json_and_from_yaml(document: dict[str, Any]) -> None:
    jsonschema.validate(document, GIVEN)

    from_json = declaration.read(json.dumps(document)).declaration
    from_yaml = declaration.read(yaml.safe_dump(document)).declaration

    assert from_json == from_yaml
    assert from_json.featureDefinitions[0].transformation == "count(*) OVER w"


def test_every_section_of_the_users_schema_reaches_the_declaration() -> None:
    read = declaration.read(json.dumps(FULL)).declaration

    assert str(read.servingRequirements.onlineLatency) == "p99 < 5ms"
    assert read.servingRequirements.offlineVolume.bytes_per_day == 50e9
    assert str(read.servingRequirements.freshnessTarget) == "p99 < 5m"
    assert read.infrastructure.onlineStore == "redis://cache:6379/1"
    assert read.infrastructure.offlineStore == "s"


def test_what_is_left_open_has_a_default() -> None:
    read = declaration.read(json.dumps(LEAST)).declaration

    assert str(read.servingRequirements.onlineLatency) == "p99 < 10ms"
    assert str(read.servingRequirements.freshnessTarget) == "p99 < 2s"
    assert read.infrastructure.computeEngine == "bytewax"
    assert read.project == "freshet"


def test_what_is_read_is_written_and_read_back_the_same() -> None:
    sources: list[dict[str, Any]] = [{"source": "wiki"}, {"source": ["wiki", "likes"]}]
    keys: list[dict[str, Any]] = [
        {},
        {"over": ["1h", "90s"]},
        {"resolution": "5 minutes"},
        {"decay": "30s"},
        {"decay": "off"},
        {"expect": {"min": 0, "max": 9.5, "nulls": "< 1%", "mismatches": "0.1%"}},
        {"expect": {"values": [1, 2], "nulls": 0, "distribution": {"reference": "data/edits.parquet"}}},
        {"expect": {"distribution": {"reference": {"bins": [0, 1], "weights": [1]}, "distance": "ks", "limit": 0.1}}},
        {"expect": {"distribution": {"reference": {"values": [1, 2], "weights": [1, 3]}, "distance": "js"}}},
    ]
    definitions = [
        {**FEATURE, "name": f"f{number}_{place}", **more, **source}
        for number, more in enumerate(keys)
        for place, source in enumerate(sources)
    ]
    options = {"views": {"v": {"ttl": "7 days", "decay": "off"}}, "columns": {"gap": "a - b"}}
    read = declaration.read(json.dumps(FULL | {"featureDefinitions": definitions} | options)).declaration

    assert declaration.read(read.model_dump_json(exclude_none=True)).declaration == read


def test_over_makes_a_feature_for_each_duration_and_its_name_ends_in_it() -> None:
    [made] = declaration.read(json.dumps(feature(over=["1h", "60 s", "7 days"]))).declaration.featureDefinitions

    assert made.names == ("edits_1h", "edits_1m", "edits_7d")


@pytest.mark.parametrize(("source", "streams"), [("wiki", ("wiki",)), (["wiki", "likes"], ("wiki", "likes"))])
def test_a_source_is_a_stream_or_a_list_of_streams(source: object, streams: tuple[str, ...]) -> None:
    [made] = declaration.read(json.dumps(feature(source=source))).declaration.featureDefinitions

    assert made.streams == streams


@pytest.mark.parametrize(
    ("decay", "length"), [("30 s", timedelta(seconds=30)), ("off", timedelta(0)), ("Off", timedelta(0)), ("null", None)]
)
def test_decay_is_a_duration_or_off_also_as_yaml_reads_it(decay: str, length: timedelta | None) -> None:
    text = (
        f"servingRequirements: {{}}\nviews: {{v: {{decay: {decay}}}}}\nfeatureDefinitions: [{{name: f, dtype: int64, "
    )
    read = declaration.read(f"{text}source: s, transformation: x, decay: {decay}}}]").declaration

    assert [read.featureDefinitions[0].decay, read.views["v"].decay] == [length, length]


def test_what_is_expected_is_read_and_a_tolerance_is_a_number_also_as_yaml_reads_it() -> None:
    text = """
servingRequirements: {}
featureDefinitions:
- {name: f, dtype: float64, source: s, transformation: x, expect: {min: -1, max: 1e3, nulls: 0, tolerance: 1e-6, mismatches: < 0.1%}}
- {name: g, dtype: string, source: s, transformation: x, expect: {values: [a, b], nulls: "0.5%"}}
- {name: h, dtype: string, source: s, transformation: x}
"""

    expected = [made.expect.expected for made in declaration.read(text).declaration.featureDefinitions]

    assert expected == [
        Expected(minimum=-1, maximum=1000, nulls=0.0, tolerance=1e-6, mismatches=0.001),
        Expected(allowed=("a", "b"), nulls=0.005),
        Expected(),
    ]


def test_a_key_of_expect_that_is_like_none_is_told_and_ignored() -> None:
    (warning,) = declaration.read(json.dumps(feature(expect={"colour": "red"}))).warnings

    assert str(warning) == (
        'features.yaml:1: key "colour" is not a key Freshet knows; it is ignored. Hint: start it with x- to keep it for yourself'
    )


def test_everything_wrong_with_what_is_expected_is_said_at_once_with_its_line() -> None:
    text = """servingRequirements: {}
featureDefinitions:
- name: f
  dtype: string
  source: s
  transformation: x
  expect:
    min: 5
    max: 1
    values: [1]
    tolerance: 1e-6
    distribution:
      reference: {bins: [0, 1], weights: [1]}
      distance: ks
      limit: 0
"""

    assert refusal(text) == [
        'features.yaml:8: feature "f" expects a min of string values. Hint: take it out: only numbers have one',
        'features.yaml:9: feature "f" expects a max of string values. Hint: take it out: only numbers have one',
        'features.yaml:8: feature "f" expects a min above its max; got 5 and 1. Hint: exchange them',
        'features.yaml:10: feature "f" expects values that are no string; got 1. Hint: write values of type string',
        'features.yaml:11: feature "f" expects a tolerance of string values. Hint: take it out: only floats have one',
        'features.yaml:13: feature "f" expects bins of string values. Hint: write values and weights',
        'features.yaml:14: feature "f" expects a ks distance of values without order. Hint: write psi or js, or bins',
        'features.yaml:15: feature "f" expects a distance that cannot be; got 0. Hint: write a number above 0, such as 0.2, below 1',
    ]


def expecting(dtype: str = "int64", **expect: Any) -> dict[str, Any]:
    return feature(dtype=dtype, expect=expect)


def drawn(reference: object, dtype: str = "int64", **more: Any) -> dict[str, Any]:
    return expecting(dtype, distribution={"reference": reference, **more})


NAMES = "name, dtype, source, transformation"
DEFAULTS = 'features.yaml: declaration "features.yaml" has no servingRequirements. Hint: add `servingRequirements: {}` to take the defaults, or say onlineLatency, offlineVolume, freshnessTarget'
DTYPES = "bytes, array(bytes), string, array(string), int32, array(int32), int64, array(int64), float32, array(float32), float64, array(float64), bool, array(bool), unix_timestamp, array(unix_timestamp)"
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no definitions": (
        {"servingRequirements": {}},
        f'features.yaml:1: declaration "features.yaml" declares no feature. Hint: add a definition with {NAMES}',
    ),
    "no requirements": ({"featureDefinitions": [FEATURE]}, DEFAULTS),
    "no name": (
        without("name"),
        f'features.yaml:1: feature "number 1" has no name. Hint: add `name:`; a definition needs {NAMES}',
    ),
    "no source": (
        without("source"),
        f'features.yaml:1: feature "edits" has no source. Hint: add `source:`; a definition needs {NAMES}',
    ),
    "no transformation": (
        without("transformation"),
        f'features.yaml:1: feature "edits" has no transformation. Hint: add `transformation:`; a definition needs {NAMES}',
    ),
    "no dtype": (
        without("dtype"),
        f'features.yaml:1: feature "edits" has no dtype. Hint: add `dtype:`; a definition needs {NAMES}',
    ),
    "an empty transformation": (
        feature(transformation="  "),
        'features.yaml:1: feature "edits" has an empty transformation. Hint: write a SQL expression, such as count(*) OVER (…)',
    ),
    "a name for no file": (
        feature(name="User-Edits 10m"),
        'features.yaml:1: feature "User-Edits 10m" has a name that cannot name a metric or a file. Hint: write user_edits_10m',
    ),
    "a name that leaves its folder": (
        feature(name="../x"),
        'features.yaml:1: feature "../x" has a name that cannot name a metric or a file. Hint: write x',
    ),
    "a view for no folder": (
        feature(view="By User"),
        "features.yaml:1: feature \"edits\" names a view that cannot name a folder; got 'By User'. Hint: write by_user",
    ),
    "a misspelt dtype": (
        feature(dtype="int46"),
        "features.yaml:1: feature \"edits\" has an unknown dtype; got 'int46'. Hint: did you mean int64?",
    ),
    "an unknown dtype": (
        feature(dtype="money"),
        f"features.yaml:1: feature \"edits\" has an unknown dtype; got 'money'. Hint: use one of {DTYPES}",
    ),
    "a name of another kind": (
        feature(name=7),
        'features.yaml:1: feature "7" has name of the wrong kind; got 7. Hint: write text in quotes',
    ),
    "a definition of another kind": (
        {**LEAST, "featureDefinitions": ["edits"]},
        "features.yaml:1: feature \"number 1\" is of the wrong kind; got 'edits'. Hint: write a mapping of keys",
    ),
    "definitions of another kind": (
        {**LEAST, "featureDefinitions": {"edits": FEATURE}},
        "features.yaml:1: key \"featureDefinitions\" is of the wrong kind; got {'edits': {'name': 'edits', 'dtype': 'int64', 'source': 'wiki', 'transformation'. Hint: write a list",
    ),
    "a misspelt key": (
        feature(transfromation="x"),
        'features.yaml:1: key "transfromation" is unknown. Hint: did you mean transformation?',
    ),
    "a misspelt section": (
        {**LEAST, "servingRequirement": {}},
        'features.yaml:1: key "servingRequirement" is unknown. Hint: did you mean servingRequirements?',
    ),
    "a misspelt requirement": (
        {**LEAST, "servingRequirements": {"freshnesTarget": "2s"}},
        'features.yaml:1: key "freshnesTarget" is unknown. Hint: did you mean freshnessTarget?',
    ),
    "a key in other letters": (
        {**LEAST, "infrastructure": {"onlinestore": "redis://x"}},
        'features.yaml:1: key "onlinestore" is unknown. Hint: did you mean onlineStore?',
    ),
    "a latency that is none": (
        {**LEAST, "servingRequirements": {"onlineLatency": "fast"}},
        'features.yaml:1: key "onlineLatency" cannot be read; got \'fast\'. Hint: write a duration such as "10ms", "2 s", "5 minutes", "1h" or "7 days"',
    ),
    "a volume that is none": (
        {**LEAST, "servingRequirements": {"offlineVolume": "much"}},
        'features.yaml:1: key "offlineVolume" cannot be read; got \'much\'. Hint: write a volume such as "50GB/day" or "200 MiB/hour"',
    ),
    "a freshness that is a number": (
        {**LEAST, "servingRequirements": {"freshnessTarget": 2}},
        'features.yaml:1: key "freshnessTarget" cannot be read; got 2. Hint: write text, such as "p99 < 10ms"',
    ),
    "a ttl that is none": (
        {**LEAST, "views": {"v": {"ttl": "a while"}}},
        'features.yaml:1: key "ttl" cannot be read; got \'a while\'. Hint: write a duration such as "10ms", "2 s", "5 minutes", "1h" or "7 days"',
    ),
    "a ttl without a unit": (
        {**LEAST, "views": {"v": {"ttl": 7}}},
        'features.yaml:1: key "ttl" cannot be read; got 7. Hint: write text, such as "10 minutes"',
    ),
    "an expectation of another kind": (
        feature(expect=7),
        'features.yaml:1: feature "edits" has expect of the wrong kind; got 7. Hint: write a mapping of keys',
    ),
    "a misspelt expectation": (
        expecting(nuls=0),
        'features.yaml:1: key "nuls" is unknown. Hint: did you mean nulls?',
    ),
    "a misspelt part of a distribution": (
        drawn("a.json", distanse="ks"),
        'features.yaml:1: key "distanse" is unknown. Hint: did you mean distance?',
    ),
    "a bound that is no number": (
        expecting(max="much"),
        "features.yaml:1: feature \"edits\" has expect.max that cannot be read; got 'much'. Hint: write a finite number",
    ),
    "a bound that is infinite": (
        expecting(min="inf"),
        "features.yaml:1: feature \"edits\" has expect.min that cannot be read; got 'inf'. Hint: write a finite number",
    ),
    "a bound of lists": (
        expecting("array(int64)", min=0),
        'features.yaml:1: feature "edits" expects a min of array(int64) values. Hint: take it out: only numbers have one',
    ),
    "allowed values of floats": (
        expecting("float64", values=[0.5]),
        'features.yaml:1: feature "edits" expects single values of float64 values. Hint: write min and max',
    ),
    "allowed values that are booleans among numbers": (
        expecting(values=[1, True]),
        'features.yaml:1: feature "edits" expects values that are no int64; got 1, True. Hint: write values of type int64',
    ),
    "no allowed values": (
        expecting(values=[]),
        'features.yaml:1: feature "edits" has expect.values that cannot be read; got []. Hint: write a list of the allowed values',
    ),
    "a rate without a percent sign": (
        expecting(nulls="0.01"),
        'features.yaml:1: feature "edits" has expect.nulls that cannot be read; got \'0.01\'. Hint: write a rate below 100%, such as "< 1%", or 0',
    ),
    "a rate of all": (
        expecting(mismatches="100%"),
        'features.yaml:1: feature "edits" has expect.mismatches that cannot be read; got \'100%\'. Hint: write a rate below 100%, such as "< 1%", or 0',
    ),
    "a tolerance of integers": (
        expecting(tolerance=0.1),
        'features.yaml:1: feature "edits" expects a tolerance of int64 values. Hint: take it out: only floats have one',
    ),
    "a tolerance of all": (
        expecting("float32", tolerance=1),
        'features.yaml:1: feature "edits" expects a tolerance that is no share; got 1. Hint: write a number such as 1e-6',
    ),
    "a distribution without a reference": (
        expecting(distribution={}),
        'features.yaml:1: feature "edits" has no reference. Hint: add `reference:`; a distribution is compared with one',
    ),
    "another distance": (
        drawn("a.json", distance="kl"),
        "features.yaml:1: feature \"edits\" has an unknown distance; got 'kl'. Hint: use one of psi, ks, js",
    ),
    "bins that fall": (
        drawn({"bins": [1, 0], "weights": [1]}),
        "features.yaml:1: feature \"edits\" has expect.distribution.reference that cannot be read; got {'bins': [1, 0], 'weights': [1]}. Hint: write bins that are rising numbers",
    ),
    "as many weights as edges": (
        drawn({"bins": [0, 1], "weights": [1, 1]}),
        "features.yaml:1: feature \"edits\" has expect.distribution.reference that cannot be read; got {'bins': [0, 1], 'weights': [1, 1]}. Hint: write one more of bins, which are edges, than of weights",
    ),
    "weights below nothing": (
        drawn({"values": [0, 1], "weights": [1, -1]}),
        "features.yaml:1: feature \"edits\" has expect.distribution.reference that cannot be read; got {'values': [0, 1], 'weights': [1, -1]}. Hint: write weights that are numbers of at least 0, not all 0",
    ),
    "a value without a weight": (
        drawn({"values": [0, 1], "weights": [1]}),
        "features.yaml:1: feature \"edits\" has expect.distribution.reference that cannot be read; got {'values': [0, 1], 'weights': [1]}. Hint: write one weight for each of the values",
    ),
    "bins without weights": (
        drawn({"bins": [0, 1]}),
        "features.yaml:1: feature \"edits\" has expect.distribution.reference that cannot be read; got {'bins': [0, 1]}. Hint: write the path of a parquet or JSON file, or bins and weights, or values and weights",
    ),
    "a distribution of lists": (
        drawn("a.json", "array(string)"),
        'features.yaml:1: feature "edits" expects a distribution of array(string) values. Hint: take it out: only numbers, text and booleans have one',
    ),
    "a file of text for a distance of numbers": (
        drawn("a.json", "string", distance="ks"),
        'features.yaml:1: feature "edits" expects a ks distance of values without order. Hint: write psi or js, or bins',
    ),
    "another engine": (
        {**LEAST, "infrastructure": {"computeEngine": "spark"}},
        "features.yaml:1: key \"computeEngine\" names an engine Freshet does not run; got 'spark'. Hint: write bytewax",
    ),
    "a project of other letters": (
        {**LEAST, "project": "My Project"},
        'features.yaml:1: project "My Project" has a name of other letters. Hint: write my_project',
    ),
    "a decay that is none": (
        feature(decay="soon"),
        'features.yaml:1: feature "edits" cannot be read; got \'soon\'. Hint: write a duration such as "10ms", "2 s", "5 minutes", "1h" or "7 days", or off',
    ),
    "a resolution without a unit": (
        feature(resolution=5),
        'features.yaml:1: feature "edits" cannot be read; got 5. Hint: write text, such as "10 minutes"',
    ),
    "a duration over which there is none": (
        feature(over=["1 month"]),
        'features.yaml:1: feature "edits" cannot be read; got \'1 month\'. Hint: write a duration such as "10ms", "2 s", "5 minutes", "1h" or "7 days"',
    ),
    "one duration that is no list": (
        feature(over="1h"),
        "features.yaml:1: feature \"edits\" has over of the wrong kind; got '1h'. Hint: write a list",
    ),
    "two durations of one name": (
        feature(over=["60m", "1h"]),
        'features.yaml:1: feature "edits" makes edits_1h, which is declared twice, first at features.yaml:1. Hint: rename one of them',
    ),
    "a stream named twice": (
        feature(source=["wiki", "wiki"]),
        "features.yaml:1: feature \"edits\" cannot be read; got ['wiki', 'wiki']. Hint: write the name of a stream, or a list of different ones",
    ),
    "no stream": (
        feature(source=[]),
        'features.yaml:1: feature "edits" cannot be read; got []. Hint: write the name of a stream, or a list of different ones',
    ),
    "a column of other letters": (
        {**LEAST, "columns": {"Gap": "a - b"}},
        'features.yaml:1: column "Gap" has a name of other letters. Hint: write gap',
    ),
    "a window of other letters": (
        {**LEAST, "windows": {"10m": "PARTITION BY user"}},
        'features.yaml:1: window "10m" has a name of other letters. Hint: write f_10m',
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_says_where_what_and_what_instead(case: str) -> None:
    document, message = REFUSALS[case]

    assert message in refusal(json.dumps(document))


def test_a_name_that_stands_twice_is_refused_with_both_places() -> None:
    text = """featureDefinitions:
  - {name: edits, dtype: int64, source: wiki, transformation: a}
  - name: edits
    dtype: int64
    source: wiki
    transformation: b
servingRequirements: {}
"""
    assert refusal(text) == [
        'features.yaml:3: feature "edits" is declared twice, first at features.yaml:2. Hint: rename one of them'
    ]


def test_a_name_that_over_makes_is_refused_where_it_stands_already() -> None:
    names: list[dict[str, Any]] = [{"name": "edits_1h"}, {"name": "edits", "over": ["1h"]}]
    document = {**LEAST, "featureDefinitions": [{**FEATURE, **more} for more in names]}

    assert refusal(json.dumps(document, indent=1)) == [
        (
            'features.yaml:10: feature "edits" makes edits_1h, which is declared twice, first at features.yaml:4. '
            "Hint: rename one of them"
        )
    ]


def test_a_key_that_stands_twice_is_refused_at_its_second_place() -> None:
    text = "featureDefinitions: []\nservingRequirements:\n  onlineLatency: 1s\n  onlineLatency: 2s\n"

    assert refusal(text) == ['features.yaml:4: key "onlineLatency" stands twice. Hint: keep one of them']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'features.yaml: declaration "features.yaml" is not a mapping of keys; got nothing. Hint: start with `featureDefinitions:` and `servingRequirements:`'),
        ("# nothing\n", 'features.yaml: declaration "features.yaml" is not a mapping of keys; got nothing. Hint: start with `featureDefinitions:` and `servingRequirements:`'),
        ("[]", 'features.yaml: declaration "features.yaml" is not a mapping of keys; got list. Hint: start with `featureDefinitions:` and `servingRequirements:`'),
        ("hello", 'features.yaml: declaration "features.yaml" is not a mapping of keys; got str. Hint: start with `featureDefinitions:` and `servingRequirements:`'),
    ],
)  # fmt: skip
def test_a_declaration_without_keys_is_refused(text: str, message: str) -> None:
    assert refusal(text) == [message]


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: b: c", "\t- a", "a: 'b", "{", "--- a\n--- b", "a: !!python/object:os.system x", "? [a]\n: b", "a: &x [*x]",
     "a: *unknown", "\x00", "a: 2026-99-99", "{[]: 1}", "[" * 5000, "<<: 7", "a: !!int x"],
)  # fmt: skip
def test_text_that_is_not_plain_yaml_is_refused_at_its_place(text: str) -> None:
    (message, *_) = refusal(text)

    assert "Hint: " in message
    assert message.startswith("features.yaml")


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = """project: Shop
featureDefinitions:
  - {name: A, dtype: int64, source: wiki, transformation: a}
  - {name: b, dtype: money, source: wiki, transformation: a}
  - {name: c, dtype: int64, source: wiki}
  - {name: d, dtype: int64, source: wiki, transformation: a, descripton: x}
servingRequirements: {onlineLatency: fast}
infrastructure: {computeEngine: flink}
"""
    said = refusal(text)

    assert sorted({message.split(": ")[0] for message in said}) == [f"features.yaml:{line}" for line in (3, 4, 5, 6, 7)]


def test_keys_of_ones_own_start_with_x() -> None:
    document = {**feature(**{"x-owner": "ada"}), "x-team": ["a"], "servingRequirements": {"x-note": 1}}

    assert declaration.read(json.dumps(document)).warnings == ()


def test_an_unknown_key_that_resembles_none_is_a_warning() -> None:
    source = declaration.read(json.dumps({**feature(colour="red"), "zebra": 1}))

    assert [str(warning) for warning in source.warnings] == [
        f'features.yaml:1: key "{key}" is not a key Freshet knows; it is ignored. Hint: start it with x- to keep it for yourself'
        for key in ("zebra", "colour")
    ]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.just(FEATURE),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*FULL, *FULL["infrastructure"], *FEATURE, "views", "windows", "project"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        declaration.read(json.dumps(document))
    except Refused as refused:
        assert all(problem.fact for problem in refused.problems)
