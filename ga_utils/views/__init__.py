"""Live views for notebooks: widgets, circuitsvis, and the slider that asks for a guess."""
