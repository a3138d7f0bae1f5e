"""How the models in `data/models` were made."""
