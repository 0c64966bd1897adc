"""Small models for machines that reach no model hub: a tokenizer, a causal LM and a text encoder, from any corpus."""
