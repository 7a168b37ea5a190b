"""
The client: a library that finds, imports and attaches devices of other machines; the command
C{usbipshare} in C{cli}; the daemon C{twistd usbipclient} in C{service}.
"""
