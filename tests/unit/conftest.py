"""Properties are tried on the same examples at every run, however slow the machine is."""

from hypothesis import settings

settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")
