"""
Network protocols: JSON, HTTP and USB/IP. They call the application through L{IResponder} and
L{IImportHandler} (interfaces.py).
"""
