"""``python -m rocm_overlay.tune`` is `overlay tune`, without loading the other commands."""

from rocm_overlay.tune.cli import app

if __name__ == "__main__":
    app(prog_name="overlay tune")
