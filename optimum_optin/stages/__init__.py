"""Stages of long runs: how far they are, kept on disk so that a second run goes on where a killed one stopped."""
