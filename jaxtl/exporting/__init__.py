"""A trained run as one file that runs without jaxtl."""
