"""`python -m niblick`, and what torchrun starts: the same command line."""

from niblick.cli import main

if __name__ == "__main__":
    main()
