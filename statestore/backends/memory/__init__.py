"""States in this process's memory.

backend    the port
shelf      entries with their blobs, their totals, and the order in which they go
leases     who computes what, between threads
"""
