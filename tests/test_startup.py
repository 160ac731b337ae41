"""What a run on the testbed has not loaded when its first step is done: each takes a tenth of a second or more."""

import subprocess
import sys

import pytest

import runs

pytestmark = pytest.mark.slow

HEAVY = ["pandas", "matplotlib", "scipy.optimize", "scipy.stats", "peft", "datasets", "trl", "wandb", "accelerate"]
HEAVY += [f"transformers.{name}" for name in ("modeling_utils", "trainer_utils", "optimization", "models")]
CHILD = """
import json, sys
from rlpref import train
from rlpref.trainer import Trainer

update = Trainer._update

def first(self, batch):
    update(self, batch)
    print("LOADED", json.dumps(sorted(sys.modules)))
    raise KeyboardInterrupt

Trainer._update = first
train.main()
"""


def test_a_run_on_the_testbed_loads_nothing_heavy_before_its_first_step_is_done(tmp_path):
    settings = [*runs.TESTBED, "algorithm=dpo", f"hydra.run.dir={tmp_path}/run"]
    arguments = [sys.executable, "-c", CHILD, *settings]
    child = subprocess.run(arguments, capture_output=True, text=True, env=runs.clean_environment(), timeout=300)
    (line,) = [line for line in child.stdout.splitlines() if line.startswith("LOADED")]
    assert "torch" in line
    assert not [module for module in HEAVY if f'"{module}"' in line]


def test_a_configuration_is_shown_without_torch(tmp_path):
    shown = "import sys; sys.argv = ['rlpref', '--cfg', 'job']; from rlpref.train import main; main()"
    code = f"{shown}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
