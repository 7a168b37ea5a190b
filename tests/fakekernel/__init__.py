"""
L{usbip_server.kernel} on a kernel in memory; C{tests.kernel} has the real one.
"""
