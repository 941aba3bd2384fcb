"""Places that keep entries and blobs. `base` is the port behind which they all lie.

memory     this process's memory
sql        a SQL catalog and a blob store: the embedded default, a fleet's store
redis      entries and blobs in Redis alone
tiers      several places as one, nearest first
wrappers   one concern each around another place: budgets, deadlines, encryption, faults

Nothing is imported here: a place's libraries are loaded by whoever opens that place.
"""
