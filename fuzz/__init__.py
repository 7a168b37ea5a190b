"""Fuzzing of the code that reads bytes from the network: C{python -m fuzz}, see README.md.

Each target is a module with:

  - C{SEEDS}: the first inputs.
  - C{WORDS}: words that have a meaning in inputs.
  - C{check(data)}: raises an exception if an input leads to an error."""
