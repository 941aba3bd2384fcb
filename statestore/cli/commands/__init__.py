"""Each command in a module of its name; what several share lies in `statestore.cli`."""
