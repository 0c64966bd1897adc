"""The HTTP interface: OpenAI's routes, facts, snapshots, keys; knows nothing of Ray or torch."""
