"""The edited LLM behind HTTP: an ingress, a retriever and a generation engine on Ray Serve."""
