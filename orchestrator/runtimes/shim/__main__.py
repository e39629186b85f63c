"""Start the shim from its file: isolated Python knows no folder but its own library's."""

import os
import sys
from importlib import import_module

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import_module("shim.main").main()
