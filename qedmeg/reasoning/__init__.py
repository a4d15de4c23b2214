"""Ways to spend compute at test time: the reasoning cache and the other scaffolds, each over the same few calls."""
