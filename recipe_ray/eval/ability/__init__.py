"""General ability of an edited LLM, by lm-evaluation-harness in process: what edits cost beside what they change."""
