"""The audit: adaptive attackers, trained after the obfuscator is fixed; measures; and a verdict."""
