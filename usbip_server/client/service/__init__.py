"""
C{twistd usbipclient}: a daemon that keeps devices of servers attached to this machine.
"""
