"""A backend of two parts: a SQL catalog of entries, and a blob store.

file           the embedded default: SQLite and a directory
reading        a file store that may only be read
fleet          PostgreSQL and a directory that all share, or an object store
backend        the port
catalog        what is asked of the catalog, inside a transaction
search         the longest stored prefix, in one statement
rows           between entries and rows
samples        entries at random
evicting       making room
departures     the newest that are gone
totals         sums that are kept beside the entries; recounting makes them anew
leases         who computes what; line hears of releases, for `statestore.backends.bell`
sightings      the index of seen prefixes
lookups        the tally of lookups; tallies has the rest
lookup_filter  says of most keys that no entry has them; bloom and filter_file are its parts
database       transactions, retried; sqlite and postgres say what is special about each
unlinking      blobs, once no entry names them
forks          connections and os.fork in one process
migrate        to the tables of this release; revisions is an operator's view of them
reserve        space kept for the moment when a disk has none left
mounts         which file system a directory lies on
"""
