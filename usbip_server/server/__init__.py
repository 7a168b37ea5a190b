"""
The device-sharing application: what C{twistd usbipshare} runs.
"""
