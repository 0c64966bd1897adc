"""RECIPE on Ray: lifelong knowledge editing of frozen LLMs by retrieved continuous prompts."""
