"""``python -m event_persister`` is the program itself."""

import os
import sys

from event_persister import binary

if __name__ == "__main__":
    program = binary()
    os.execv(program, [program, *sys.argv[1:]])
