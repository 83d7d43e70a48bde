"""The commands as functions: one file per command, with what they share."""
