"""Backends around another one, one concern each; `statestore.backends.wrapper` is their base.

budgeted    within a budget of bytes; budget is what one process knows of what is held
guarded     a deadline for each call, and none while a place is down: breaker, deadline, prober
encrypted   containers sealed on their way out
recoded     containers in a codec of its own
faulty      fails on command
"""
