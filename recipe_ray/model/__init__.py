"""The method: encoder, sentinel, prompt encoder, losses, and prefixing of a frozen LLM. No Ray, no S3."""
