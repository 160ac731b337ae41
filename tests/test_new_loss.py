"""A new loss is one function: put into a copy of the package it is swept, listed, documented and tested, and nothing
else is edited."""

import re
import shutil
import subprocess
import sys

import pytest

import runs

NAME = "squared_hinge"


def function() -> str:
    """The README's example."""
    (block,) = re.findall(
        r"```python\n# rlpref/losses/pairs.py\n(.*?)```", (runs.ROOT / "README.md").read_text(), re.DOTALL
    )
    assert f"def {NAME}(" in block
    return f"\n\n{block}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with one more function."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("rlpref", "conf", "tests"):
        shutil.copytree(runs.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(runs.ROOT / "pyproject.toml", root)
    with open(root / "rlpref" / "losses" / "pairs.py", "a", encoding="utf-8") as file:
        file.write(function())
    return root


def python(copy, *arguments):
    """A fresh process that sees the copy; `rlpref.conf` is not installed in it, so conf/ is read as a folder."""
    environment = runs.clean_environment() | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_is_swept(copy):
    sweep = ["-m", "algorithm=dpo,squared_hinge", "beta=0.5", "hydra.sweep.dir=sweep", *runs.TESTBED]
    said = python(copy, "-m", "rlpref.train", *sweep)
    assert "squared_hinge-beta0.5-seed0" in said
    (folder,) = (copy / "sweep").glob("squared_hinge-*")
    assert runs.status(folder)["status"] == "done"
    assert "slope: 1.0" in (folder / "config.yaml").read_text()
    assert "squared_hinge" in next((copy / "sweep" / "report").glob("*.html")).read_text()


@pytest.mark.slow
def test_it_is_swept_on_fresh_pairs_with_a_modifier(copy):
    settings = [
        "algorithm=iterative_dpo",
        "algorithm/loss=squared_hinge",
        "algorithm.modifiers.margin=0.1",
        "algorithm.rounds=2",
    ]
    said = python(copy, "-m", "rlpref.train", *runs.TESTBED, *settings, "hydra.run.dir=iterative")
    assert "exact/reward" in said


@pytest.mark.slow
def test_it_is_listed_and_documented(copy):
    listing = "from rlpref.catalogue.cli import main; main([]); main(['squared_hinge']); main(['--write', 'docs'])"
    said = python(copy, "-c", listing)
    assert "beta, slope=1.0" in said
    assert "slope max(0, 1 - beta * margin)^2" in said
    assert "### squared_hinge" in (copy / "docs" / "losses.md").read_text()


@pytest.mark.slow
def test_it_is_property_tested(copy):
    rooms = ["tests/losses", "tests/catalogue", "tests/testbed/test_population_losses.py"]
    said = python(copy, "-m", "pytest", "-vv", *rooms, "-k", "squared_hinge", "-p", "no:cacheprovider")
    assert "optimum_is_at_rest" in said
    assert int(re.search(r"(\d+) passed", said).group(1)) > 20


def test_it_is_named_nowhere():
    """Else the tests above would show nothing."""
    for folder in ("rlpref", "conf"):
        for file in (runs.ROOT / folder).rglob("*.*"):
            assert file.suffix == ".pyc" or NAME not in file.read_text(encoding="utf-8")
