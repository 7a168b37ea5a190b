"""
Values and pure functions: devices, requests, replies, rules. No I/O, no reactor.
"""
