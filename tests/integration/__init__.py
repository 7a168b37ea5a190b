"""
Tests with a spawned daemon, over loopback.
"""
