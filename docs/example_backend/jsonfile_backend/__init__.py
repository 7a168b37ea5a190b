"""
A backend for usbipshare: devices listed in a JSON file.
"""
