"""The stages of a curation: what each one does with a unit, or with the results of all units."""
