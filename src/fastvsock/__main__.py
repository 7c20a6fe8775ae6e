"""`python3 -m fastvsock`."""

from .cli import main

main()
