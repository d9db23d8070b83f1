"""How accurate a classifier is behind an obfuscator, and how well an image is reconstructed."""
