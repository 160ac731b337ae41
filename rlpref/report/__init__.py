"""Run folders to frames, statistics, figures and one page. `build("runs/demo")` does all of it.

Reads only what runs left on disk and imports nothing else of rlpref.
"""

from rlpref.report.cli import build
from rlpref.report.folders import NoRuns
from rlpref.report.frames import Sweep, load
from rlpref.report.statistics import Interval, costs, headline, mean_interval

__all__ = ["Interval", "NoRuns", "Sweep", "build", "costs", "headline", "load", "mean_interval"]
