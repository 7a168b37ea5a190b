"""
C{twistd usbipclient}: devices that stay plugged in.
"""
