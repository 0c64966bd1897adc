"""How people ask for facts: wordings of many relations, what a chat puts around them, and invented facts."""
