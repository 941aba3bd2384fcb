"""Entries and blobs in Redis alone: one server, behind Sentinel, or a Cluster.

address    a URL taken apart
server     the connection: commands in, replies or our errors out
keyspace   the name of every key
rows       between entries and the fields of a hash
scripts    what happens in one atomic step, in Lua
parts      a blob as parts of about 1 MiB
sweeping   expired entries, orphans, and what the server evicted
backend    the port
"""
