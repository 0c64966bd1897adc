"""Data sets of edits: files of several forms, read into one type, cleaned, and dealt out in batches."""
