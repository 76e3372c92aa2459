"""`python -m ptcli` is `ptcli`."""

from ptcli.cli import main

main()
