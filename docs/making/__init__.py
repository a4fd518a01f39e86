"""How the documentation site is made: `python docs/making/build.py`, or `make docs`."""
