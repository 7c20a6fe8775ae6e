"""A plug-in for pytest: a failure is all that a mutant is asked for, so Hypothesis does not look for a smaller one."""

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("mutants")
