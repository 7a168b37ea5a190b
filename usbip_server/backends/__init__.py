"""
Where devices come from. Each module is one L{usbip_server.interfaces.IUsbBackend}.
"""
