"""Notebooks, kept with their outputs: `execute` makes these, `check` says whether they are those of
the source."""
