"""Studies: what the commands measure. A study is a plan (values), a measurement and its results; no HTML."""
