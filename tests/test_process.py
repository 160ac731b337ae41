"""What a process keeps between steps."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PASSES = """
import resource, sys, torch
from rlpref.process import prepare_process
if sys.argv[1] == "kept":
    prepare_process(1)
def one_pass():
    held = [torch.ones(2_000_000) for _ in range(20)]  # 8 MB each
for _ in range(3):  # what else is allocated meanwhile may take a place in between
    one_pass()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    one_pass()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PASSES, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults of glibc's memory")
def test_memory_of_a_step_is_there_for_the_next():
    assert faults("kept") < faults("given back") / 5
