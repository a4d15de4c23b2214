"""The release of a trained model: its folder, its card, and the way to the hub."""
