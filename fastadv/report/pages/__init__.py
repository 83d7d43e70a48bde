"""The page of each study, from its results only."""
