"""`python -m mbo2o` is `mbo2o`."""

from mbo2o.cli import main

main()
