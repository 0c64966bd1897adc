"""The repository of facts: files by URI, the Delta table, its quarantine and its index. No torch, no Ray."""
