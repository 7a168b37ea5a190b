"""
The one place that knows a path under C{/sys} or a netlink number.
"""
