# zmlx/__main__.py: `python -m zmlx`.
from zmlx.cli import main

if __name__ == "__main__":
    main()
