"""``python -m statestore``: the `statestore` command."""

from statestore.cli import main

if __name__ == "__main__":
    main(prog_name="statestore")
