"""Runs `mutants.main` with the Python that has cosmic-ray; see its --help."""

import os
import sys

from .copies import ROOT, tools

python = tools()
os.chdir(ROOT)
os.environ["PYTHONPATH"] = str(ROOT / "tests")
os.execv(python, [str(python), "-m", "mutants.main", *sys.argv[1:]])
