"""
Who may do what: authorization, rate limits for wrong tokens, the audit log.
"""
