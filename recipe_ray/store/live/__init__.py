"""A table of facts kept searchable while it changes: one immutable view a version, made from the one before."""
