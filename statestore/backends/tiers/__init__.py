"""Several places as one, nearest first.

backend        the port
lookups        the tallies of all tiers
recent         what was just read from further tiers, until a hit wants it nearer
write_behind   work behind the caller's back
"""
