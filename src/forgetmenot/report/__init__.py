"""Tables, figures, claims and the HTML page, from result files and manifests."""
