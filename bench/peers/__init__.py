"""Other people's implementations of the same work, each in a process of its own.

A driver is a module that is run as `python -m bench.peers.NAME WORK`. It imports nothing of mbo2o, since most
peers live in an environment of their own (see `processes`). It says `ready`, and answers every line of
standard input, which holds seconds, by a line with the rate at which it worked for so many seconds.
"""
