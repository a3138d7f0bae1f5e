"""`python -m ga_utils` prints what this machine can run, as `ga.doctor()` does in a notebook."""

from ga_utils.doctor import doctor

print(doctor())
