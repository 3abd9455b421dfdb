"""``python -m skyvec``."""

from skyvec.cli import main

if __name__ == "__main__":
    main()
