"""Several places as one, nearest first.

backend        the port
tier           one place, and calls that it fails
copies         further away what is put, nearer what is hit
lookups        the tallies of all tiers
recent         what was just read from further tiers, until a hit wants it nearer
write_behind   work behind the caller's back
"""
