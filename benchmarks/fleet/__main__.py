"""``python benchmarks/fleet``: see run.py."""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.fleet.run import main

    main()
