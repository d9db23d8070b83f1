"""Attackers who restore pictures: one small file each, behind one protocol."""
