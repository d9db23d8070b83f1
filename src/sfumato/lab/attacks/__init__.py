"""Attackers that reconstruct images: one small file each, behind one protocol."""
