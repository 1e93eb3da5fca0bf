"""Files that are whole or absent, and the folder of caches.

May import nothing of ptune.
"""
