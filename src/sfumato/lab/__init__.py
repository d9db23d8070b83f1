"""The lab: where networks are trained, attacked and measured. Needs torch; nothing outside it and `cli` imports it."""
