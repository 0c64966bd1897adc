"""Command lines: parse, connect, call, say where the result lies."""
