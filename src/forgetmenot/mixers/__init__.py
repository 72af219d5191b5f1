"""Token and channel mixers: one file each, chosen by name."""
