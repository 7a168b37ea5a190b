"""
Sockets, endpoints and TLS; nothing here knows of USB.
"""
