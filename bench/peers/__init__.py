"""Other libraries, called as their users call them. None is required: a peer that does not import is left out."""
