"""How well an edited model answers: protocol, metrics, and the editors compared. No Ray."""
