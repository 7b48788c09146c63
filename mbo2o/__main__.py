"""`python -m mbo2o` is `mbo2o`."""

from mbo2o.cli.main import main

main()
