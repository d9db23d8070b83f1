"""The audit: attackers who come after the obfuscator, measures, and a verdict."""
