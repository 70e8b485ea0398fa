"""What a distribution is compared with is read from the project's own files, or refused with all that is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import AwareDatetime

from freshet.flows.edges.project import Project
from freshet.flows.steps.sql import compile_views
from freshet.schemas import declaration
from freshet.schemas.errors import Refused
from freshet.schemas.event import Event, Stream, contract
from freshet.schemas.expected import Reference


class Click(Event):
    stream = Stream(topic="clicks", key="user", event_time="time")
    time: AwareDatetime
    user: str
    page: str
    price: int


def references(root: Path, **features: dict[str, Any]) -> dict[str, Reference]:
    """Declare features, each with its dtype, expression and distribution, and read their references."""
    made = [
        {"name": name, "dtype": one["dtype"], "source": "clicks", "transformation": one["sql"]}
        | {"expect": {"distribution": one["distribution"]}}
        for name, one in features.items()
    ]
    source = declaration.read(json.dumps({"servingRequirements": {}, "featureDefinitions": made}, indent=1))
    clicks, _ = contract("clicks", Click)
    assert clicks is not None
    pipeline = Project(root).with_references(compile_views(source, {"clicks": clicks}), source)
    found = {one.name: one.expected.distribution for view in pipeline.views for one in view.features}
    return {name: drawn.reference for name, drawn in found.items() if drawn and isinstance(drawn.reference, Reference)}


def price(reference: object, **more: Any) -> dict[str, Any]:
    return {"dtype": "int64", "sql": "price", "distribution": {"reference": reference, **more}}


def page(reference: object) -> dict[str, Any]:
    return {"dtype": "string", "sql": "page", "distribution": {"reference": reference}}


def test_numbers_of_a_parquet_file_are_counted_in_bins_of_about_as_many_each(tmp_path: Path) -> None:
    pq.write_table(pa.table({"p": pa.array([*range(1000), None], pa.int32())}), tmp_path / "p.parquet")

    found = references(tmp_path, p=price("p.parquet"))["p"]

    assert (len(found.bins), found.count) == (11, 1000)
    assert all(99 <= weight <= 101 for weight in found.weights)
    assert (-math.inf, math.inf) == (found.bins[0], found.bins[-1])


def test_numbers_that_are_often_the_same_have_their_own_bins(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"p": [1] * 60 + [2] * 30 + [5] * 10}))

    found = references(tmp_path, p=price("p.json"))["p"]

    assert {-math.inf: 0.0, 1.0: 60.0, 2.0: 40.0} == dict(zip(found.bins, found.weights, strict=False))


def test_ks_has_finer_bins(tmp_path: Path) -> None:
    pq.write_table(pa.table({"p": range(1000)}), tmp_path / "p.parquet")

    assert len(references(tmp_path, p=price("p.parquet", distance="ks"))["p"].bins) == 101


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '[{"p": "a"}, {"p": "b"}, {"p": "a"}, {"q": 1}]'),
        ("p.json", '{"p": ["a", "b", "a", null]}'),
        ("p.jsonl", '{"p": "a"}\n{"p": "b"}\n\n{"p": "a"}\n'),
    ],
)
def test_text_of_a_json_file_is_counted_by_itself(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    assert references(tmp_path, p=page(name)) == {"p": Reference((2.0, 1.0), categories=("a", "b"), count=3)}


def test_a_reference_that_is_written_out_needs_no_file(tmp_path: Path) -> None:
    inline = {"values": ["a", "b"], "weights": [1, 3]}

    assert references(tmp_path, p=page(inline)) == {"p": Reference((1.0, 3.0), categories=("a", "b"))}


def test_every_file_that_cannot_be_used_is_refused_with_its_feature_and_its_line(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"e": []}')
    (tmp_path / "words.json").write_text('{"w": ["x"]}')
    (tmp_path / "number.json").write_text("5")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")

    with pytest.raises(Refused) as raised:
        references(
            tmp_path, a=price("nowhere.parquet"), b=price("torn.parquet"), c=price("torn.json"), d=price("other.parquet"),
            e=price("empty.json"), w=price("words.json"), n=price("number.json"),
        )  # fmt: skip

    said = [str(problem) for problem in raised.value.problems]
    assert ["a", "b", "c", "d", "e", "w", "n"] == [problem.name for problem in raised.value.problems]
    assert said[0].startswith(
        'features.yaml:11: feature "a" has a reference that cannot be read; got nowhere.parquet: No'
    )
    assert all("Hint: write the path of a parquet or JSON file" in line for line in said)
    assert "other.parquet: it has no column d" in said[3]
    assert "empty.json: its column e has no values" in said[4]
