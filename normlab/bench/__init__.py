"""What each norm costs on this machine (`python -m normlab.bench`), and what its communication would cost on
many ranks (`python -m normlab.bench.scaling`)."""
