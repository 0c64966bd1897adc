"""Generation engines: the frozen LLM, with requests of different facts and of none completed side by side."""
