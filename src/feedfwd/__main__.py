"""`python -m feedfwd`: the command, where its script is not on the path."""

from feedfwd.cli import main

if __name__ == "__main__":
    main()
