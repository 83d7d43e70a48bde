"""Defences against unaware, white-box and adaptive attackers."""
