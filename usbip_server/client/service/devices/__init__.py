"""
The devices that the client service attaches, and how it keeps them attached.
"""
