"""What a table tells: lists, histories, differences, contradictions, dumps."""
