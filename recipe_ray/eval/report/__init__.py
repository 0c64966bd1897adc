"""From the rows of an evaluation to a report: Markdown, one self-contained HTML page, figures, JSON."""
