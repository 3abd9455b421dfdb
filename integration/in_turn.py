"""Run commands of ``skyvec`` one after the other in one process, since each would take seconds to start.

python integration/in_turn.py "skyvec mock-survey --rows 60 --out sky" "skyvec embed sky"
"""

import sys

from skyvec.cli import main

if __name__ == "__main__":
    for command in sys.argv[1:]:
        sys.argv = command.split()
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                sys.exit(f"{command} ended with {ended.code}")
