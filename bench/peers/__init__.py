"""Other libraries, called as their users call them. None is required: a peer that does not import is left out.

A peer is a module with ``NAME``, ``missing()`` (why it cannot be used here, or None), ``version()``, and ``ATTACKS``:
for the name of an attack a function of a network, the images and what is wanted of them, and the settings, that
returns images. ``install.sh`` installs the libraries, ``versions.py`` lists their versions.
"""
