"""Live views for notebooks: widgets, circuitsvis' patterns, and the slider that asks for a guess."""
