"""Trainings and audits that exist, resuming those that do not, and how long that takes."""
