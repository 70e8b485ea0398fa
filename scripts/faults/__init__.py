"""Faults made outside of the validator, so that it can be measured: what breaks, and an account of what really broke.

A fault's own words are those of `schemas.finding.Cause`. Each way to break (`proxy`, `sink`, `files`) strikes what a
`Choice` takes and notes every deed in a file, `Deeds`; what it had no effect on is no deed.
"""
