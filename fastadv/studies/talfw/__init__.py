"""A transferable adversarial copy of a set of pairs."""
