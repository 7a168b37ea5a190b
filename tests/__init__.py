"""
The tests: unit tests mirror the package, C{integration} runs a spawned daemon.
"""
