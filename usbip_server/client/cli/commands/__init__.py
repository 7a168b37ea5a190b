"""
The subcommands of C{usbipshare}, one a file.
"""
