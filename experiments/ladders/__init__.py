"""How distances answer to damage of real clips, rung by rung: which figure sees which fault, at how many clips."""
