"""
The devices of the server: the clients' view of them, the desired state, and the operations that
establish it.
"""
