"""
    python -m pytest --student=DIR          # grade the exercises: what is in DIR stands in for our files
    python -m pytest --student=DIR -m gae   # one of them
"""
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
# In the order of EXERCISES.md: the marks of the tests that grade them
EXERCISES = ("solver", "replay", "multiplication", "cache", "gae", "rloo", "short", "puct", "visits", "bugs",
             "scaling", "curve")


def pytest_addoption(parser):
    parser.addoption("--student", metavar="DIR", help="grade the exercises of EXERCISES.md: run their tests "
                                                      "only, with the files in DIR in place of ours")


def pytest_configure(config):
    for number, name in enumerate(EXERCISES, 1):
        config.addinivalue_line("markers", f"{name}: grades exercise {number} of EXERCISES.md")
    folder = config.getoption("--student")
    if folder and not os.path.isdir(folder):
        raise pytest.UsageError(f"--student {folder}: no such folder")
    if folder:
        sys.path.insert(0, os.path.abspath(folder))


def pytest_collection_modifyitems(config, items):
    if config.getoption("--student"):
        items[:] = [item for item in items if any(mark.name in EXERCISES for mark in item.iter_markers())]
