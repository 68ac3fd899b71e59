"""The driven side: one outside thing per file."""
