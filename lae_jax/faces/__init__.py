"""From photographs to aligned crops: landmarks (detect), the crop (align), and both as one recipe (crops)."""
