"""The sample events: each good one is accepted, each bad one is not, and none is unused."""

from pathlib import Path

import numpy as np
import pytest

from freshet.flows.edges.project import Project
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.intake import Intake, Taken
from freshet.schemas.event import Contract
from freshet.schemas.poll import Poll

REPO = Path(__file__).parent.parent
SAMPLES = REPO / "schemas" / "samples"
FILES = sorted(SAMPLES.glob("*/*.*"))  # those of older versions stand in folders: `freshet schema check` looks at them


def contract(stream: str) -> Contract:
    return Project(REPO).contracts([stream])[stream]


def take(path: Path) -> Taken:
    made = contract(path.parent.name)
    poll = Poll("t", 0, 1, [path.read_bytes()], [None], [None], np.array([-1]), np.array([0]), 1, at_end=True)
    return Intake(made, ()).take(PartitionJudge(made.stream), poll)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_sample_is_what_its_name_says(path: Path) -> None:
    taken = take(path)

    expected = {"good": (1, 0), "bad": (0, 1)}[path.name.partition("-")[0]]
    assert expected == (taken.events.num_rows, len(taken.rejects)), taken.rejects
    assert path.suffix == ".json"


def test_each_stream_has_good_and_bad_samples_and_each_sample_a_stream() -> None:
    streams = {path.stem for path in (REPO / "schemas" / "events").glob("[a-z]*.py")}

    assert {path.parent.name for path in FILES if path.name.startswith("good-")} == streams
    assert {path.parent.name for path in FILES if path.name.startswith("bad-")} == streams
