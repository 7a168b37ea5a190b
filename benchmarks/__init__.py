"""
How fast the daemon is: programs to run by hand, never part of the tests (README.md).
"""
