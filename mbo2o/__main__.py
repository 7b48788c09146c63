"""`python -m mbo2o` is `mbo2o`."""

from .cli import main

main()
