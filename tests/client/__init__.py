"""
Tests of L{usbip_server.client}.
"""
