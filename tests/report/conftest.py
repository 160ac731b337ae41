from pathlib import Path

import pytest
from synthetic_sweep import METHODS, SEEDS, sampled_row, write_run, write_sweep


@pytest.fixture(scope="session")
def testbed_sweep(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("runs") / "testbed")


@pytest.fixture(scope="session")
def text_sweep(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "text"
    for method in METHODS:
        for seed in SEEDS:
            model = {"model": {"kind": "lm"}}
            write_run(root / f"{method}-s{seed}", method, 0.1, seed, sampled_row, **model)
    return root
