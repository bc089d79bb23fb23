"""``python -m rocm_overlay`` is the ``overlay`` command."""

from rocm_overlay.cli import main

if __name__ == "__main__":
    main()
