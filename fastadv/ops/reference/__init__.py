"""Plain PyTorch implementations: the specification of every operation."""
