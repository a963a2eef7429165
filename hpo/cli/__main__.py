"""`python -m hpo.cli`: the command line without the script that an installation puts on the path."""

from hpo.cli.app import main

if __name__ == "__main__":
    main()
