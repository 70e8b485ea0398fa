"""The installed package keeps to one name, and the lock files to versions and hashes."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FOLDERS = ("schemas", "flows", "scripts", "feature_repo")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = {
    "requirements.lock": [*PROJECT["dependencies"], *EXTRAS["validator"], *EXTRAS["embedded"], *EXTRAS["dev"]],
    "tests/bench/quix.lock": ["quixstreams", "feast"],
    "tests/oracles/schemathesis.lock": ["schemathesis"],
    "tests/oracles/jsonsubschema.lock": ["jsonsubschema"],
    "deploy/build.lock": ["setuptools"],
    "deploy/materializer.lock": PROJECT["dependencies"],
    "deploy/validator.lock": [*PROJECT["dependencies"], *EXTRAS["validator"]],
}
"""The lock files, and the direct requirements that each must hold."""


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what would be published, from a copy, since building leaves folders behind."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / file, copy)
    for folder in FOLDERS:
        shutil.copytree(REPO / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, copy)
    return next(out.glob("*.whl"))


def test_everything_installed_lies_below_one_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(REPO).as_posix() for folder in FOLDERS for path in (REPO / folder).rglob("*.py")}
    folders = ("samples", "snapshots")
    samples = {
        path.relative_to(REPO).as_posix() for name in folders for path in (REPO / "schemas" / name).rglob("*.json")
    }

    assert {"freshet", f"freshet-{PROJECT['version']}.dist-info"} == {name.split("/")[0] for name in names}
    assert samples
    assert {f"freshet/{name}" for name in modules | samples | {"feature_repo/features.yaml"}} <= names


def test_the_installed_command_makes_and_plans_a_project(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    pip("--python", bin_ / "python", "install", "--no-deps", "--no-index", wheel)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    # other packages are this environment's; the .pth files there, and so this checkout, are not read
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def freshet(*words: str) -> str:
        done = subprocess.run(
            [bin_ / "freshet", *words], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "usage: freshet" in freshet("--help")
    freshet("init", "shop")
    assert "feature view page_views_by_visitor" in freshet("-C", "shop", "plan")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_holds_versions_and_hashes_of_all_that_is_needed_and_no_address(lock: str) -> None:
    text = (REPO / lock).read_text(encoding="utf-8")
    names = re.findall(r"^([a-z0-9.\-]+)(?:\[.*\])?==", text, re.MULTILINE)

    assert "://" not in text
    assert len(names) == len(re.findall(r"^[a-z0-9].*\\\n    --hash=sha256:", text, re.MULTILINE))
    direct = {re.split(r"[\[<>=]", word)[0].lower().replace("_", "-") for word in LOCKS[lock]}
    assert direct <= set(names)
