"""
Fuzzing of what reads bytes from the network: C{python -m fuzz}, see README.md.

Each target is a module with:

  - C{SEEDS}: inputs to begin with.
  - C{WORDS}: what it looks for in them.
  - C{check(data)}: raises if an input does what none may do.
"""
