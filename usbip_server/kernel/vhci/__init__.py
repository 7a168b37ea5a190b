"""
vhci_hcd, the virtual host controller that imported devices appear at.
"""
