"""The web page: one HTML document, its modules and its style, which talk to the HTTP interface of the same origin."""
