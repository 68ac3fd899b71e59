"""Measurements against rivals: one file a question, each case in a process of its own."""
