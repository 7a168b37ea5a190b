"""Benchmarks of the daemon, which are run by hand and are not part of the tests: README.md."""
