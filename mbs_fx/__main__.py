"""``python -m mbs_fx``: the command line."""

from mbs_fx.cli import main

if __name__ == "__main__":
    main()
