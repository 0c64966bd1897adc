"""The embedded default: a small LM, an encoder, and the world of facts that they know."""
