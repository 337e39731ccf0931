"""The command line: one thin file a verb. `qkv = qkv.cli:main`, `python -m qkv`."""


def main() -> None:
    """Run the verb that sys.argv names, and exit with its code."""
    import sys

    from qkv.cli.app import run

    sys.exit(run())
