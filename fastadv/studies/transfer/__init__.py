"""Transferability: images of surrogates, evaluated on all networks."""
