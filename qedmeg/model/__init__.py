"""Model families, layers, layer specs, building and weights."""
