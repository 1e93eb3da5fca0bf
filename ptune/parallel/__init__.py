"""Several processes that compute together: how they are started, and what they know of each other.

May import errors, files, base, data, config.
"""
