"""
How requests come in. No protocol knows another, nor what carries requests out.
"""
