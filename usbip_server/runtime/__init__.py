"""
Technical parts that know nothing of USB: threads, child processes, files, event logs.
"""
