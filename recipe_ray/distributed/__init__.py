"""Ray's part of the package: the training loop, the ingest stages, the commit."""
