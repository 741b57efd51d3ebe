"""Keeping what is worked on as it was: one thread at a time, undone on errors and on Ctrl-C as well."""
