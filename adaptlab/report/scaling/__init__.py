"""The report on scaling laws: what they are fitted to, their tables and figures."""
