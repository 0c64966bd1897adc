"""Reading dumps of facts: rows of JSON Lines, CSV and Parquet."""
