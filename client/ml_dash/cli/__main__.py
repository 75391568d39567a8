import sys

from ml_dash.cli import main

sys.exit(main())
