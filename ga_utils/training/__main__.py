"""`python -m ga_utils.training tiny-llama`: see `recipes`."""

from ga_utils.training.recipes import main

main()
