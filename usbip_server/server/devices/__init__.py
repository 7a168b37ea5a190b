"""
The devices of the server: how clients see them, what is desired, and how that is reached.
"""
