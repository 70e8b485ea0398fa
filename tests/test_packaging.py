"""The installed package keeps to one name, and the lock file to versions and hashes."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    clone = out / "clone"
    subprocess.run(["git", "clone", "--quiet", REPO, clone], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, clone]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


def test_everything_installed_lies_below_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {"freshet", next(name for name in names if "dist-info" in name).split("/")[0]} == {
        name.split("/")[0] for name in names
    }
    listing = ["git", "ls-tree", "-r", "--name-only", "HEAD"]
    for path in subprocess.run(listing, cwd=REPO, capture_output=True, text=True, check=True).stdout.split():
        if path.endswith(".py") and path.split("/")[0] in ("flows", "schemas", "scripts", "feature_repo"):
            assert f"freshet/{path}" in names
    assert "freshet/feature_repo/features.yaml" in names
    assert any(name.startswith("freshet/schemas/samples/wiki_edits/good-") for name in names)


def test_the_installed_command_makes_and_plans_a_project(wheel: Path, tmp_path: Path) -> None:
    installed, project = tmp_path / "site", tmp_path / "shop"
    zipfile.ZipFile(wheel).extractall(installed)
    for words in (["init", str(project)], ["-C", str(project), "plan"]):
        script = f"import sys; sys.path.insert(0, {str(installed)!r}); import freshet; "
        script += f"freshet.__path__[:] = [{str(installed / 'freshet')!r}]; "
        script += f"from freshet.scripts.cli import main; sys.exit(main({words!r}))"
        done = subprocess.run(
            [sys.executable, "-S", "-c", _with_site(script)], capture_output=True, text=True, check=False
        )

        assert done.returncode == 0, done.stderr
    assert "feature view page_views_by_visitor" in done.stdout


def _with_site(script: str) -> str:
    """Run without .pth files, so that this checkout's own install is not seen; other packages stay."""
    return f"import sys; sys.path += {[path for path in sys.path if path.endswith('site-packages')]!r}; {script}"


@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/materializer.lock", "deploy/validator.lock"])
def test_a_lock_file_holds_versions_and_hashes_and_no_address(lock: str) -> None:
    text = (REPO / lock).read_text(encoding="utf-8")
    names = re.findall(r"^([a-z0-9.\-]+)(?:\[.*\])?==", text, re.MULTILINE)

    assert "://" not in text
    assert len(names) == len(re.findall(r"^[a-z0-9].*\\\n    --hash=sha256:", text, re.MULTILINE))
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {re.split(r"[\[<>=]", word)[0].lower().replace("_", "-") for word in project["dependencies"]}
    assert direct <= set(names)
