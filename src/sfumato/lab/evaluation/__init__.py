"""Measure accuracy behind an obfuscator, and the quality of reconstructions."""
