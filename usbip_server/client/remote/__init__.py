"""
A backend: the devices of other servers.
"""
