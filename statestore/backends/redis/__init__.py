"""Entries and blobs in Redis alone: one server, behind Sentinel, or a Cluster.

address    a URL taken apart
connect    from an address to a client of the right kind
server     the connection: commands in, replies or our errors out
wire       the quick way to read from one server
fanout     many commands to a Cluster's nodes at once
keyspace   the name of every key
rows       between entries and the fields of a hash
shard      what scripts in Lua share: names, orders, removals; sums what is counted
scripts    what happens to entries in one atomic step
mending    what a sweep does in one
search     the longest stored prefix
parts      a blob as parts of about 1 MiB
evicting   making room; choosing says who goes
leases     who computes what
line       a connection that listens
sightings  the index of seen prefixes
lookups    the tally of lookups
sweeping   expired entries, orphans, and what the server evicted; recounting the sums made anew
backend    the port
"""
