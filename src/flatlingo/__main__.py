"""`python -m flatlingo`, and so `accelerate launch -m flatlingo`."""

from flatlingo.cli import main

main()
