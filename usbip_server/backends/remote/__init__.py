"""
A backend for the devices of other servers: the gateway.
"""
