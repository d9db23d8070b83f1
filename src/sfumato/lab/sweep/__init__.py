"""Sweeps: one recipe at several settings, trained, audited, and compared with the best mixture."""
