"""Command-line stages: thin, one module a Snakemake rule."""
