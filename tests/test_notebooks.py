"""Every notebook runs from top to bottom."""

import runpy
from pathlib import Path

import matplotlib as mpl
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook):
    with mpl.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        mpl.use("agg")
        found = runpy.run_path(str(notebook))
    if notebook.stem == "dpo_and_ipo":
        assert found["targets"]["ipo, tau 0.1"] == pytest.approx(5, abs=0.1)
        assert found["targets"]["ipo, tau 0.05"] == pytest.approx(10, abs=0.1)
        assert found["targets"]["dpo, beta 0.5"] == pytest.approx(20, abs=0.1)
