"""Dataset builders: one file each, chosen by name."""
