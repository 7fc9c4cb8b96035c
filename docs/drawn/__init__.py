"""The pictures that `docs/pictures.py` draws, one a file."""
