"""Indexes over the keys of a snapshot: exact, approximate, and as files that a server maps."""
