"""Sweeps: one recipe at several settings, each trained and audited, beside what anybody gets without an obfuscator."""
