"""
Tests of L{usbip_server.protocols}.
"""
