"""Detectors of adversarial faces: fitted, evaluated, applied."""
