"""What a number of facts and a stream of requests need: a plan on paper, from measured and assumed constants."""
