"""Figures and the HTML page, from results only (`pip install 'fastadv[report]'`)."""
