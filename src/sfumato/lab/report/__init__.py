"""Tables, panels, the HTML page and the plot of the trade-off, from finished audits."""
