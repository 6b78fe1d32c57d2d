"""`python -m jaxtl COMMAND`."""

from jaxtl.cli import main

if __name__ == "__main__":
    main()
