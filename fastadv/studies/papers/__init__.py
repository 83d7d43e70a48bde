"""Tables and figures of papers, measured again: recipes over the studies."""
