"""`python -m ga_utils.doctor`: what this machine can run. In a notebook: `ga.doctor()`, of `ga_utils.machine`."""

from ga_utils.machine import doctor

if __name__ == "__main__":
    print(doctor())
