"""Loading by plan: a step's number in, its packs out."""
