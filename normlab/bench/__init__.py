"""What each norm costs on this machine: `python -m normlab.bench`."""
