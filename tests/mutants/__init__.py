"""`make mutants`: changes the code one place at a time, and looks whether a test notices.

cosmic-ray makes the changes (tools.in pins it). Everything happens in copies of the repository under build/mutants/,
one for each job, each with an environment of its own. What has been tried is kept there too, so a run goes on where the
last one stopped. table.py names the tests that concern each module; equivalent.toml lists the changes that no test can
see, and why.

Not mutated: annotations and whatever only type checkers read, and `_splice.pyx`, which no tool for Python reads. Most
tests of the engines run against `_splice.pyx` and against its twin `_copy.py`, which is mutated.
"""
