"""
The gateway: a backend whose devices are those of other servers.
"""
