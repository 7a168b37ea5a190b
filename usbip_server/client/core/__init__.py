"""
What finds devices at their servers, fetches them and plugs them in.
"""
